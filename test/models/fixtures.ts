/** The models that tests run, read for the reference: sharing nothing with lib/. */

import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { round } from '../support/numbers.ts'
import type { Kind, ReferenceConfig, ReferenceLayer, ReferenceWeights } from './reference.ts'
import { readSafetensors, type Stored } from './safetensors.ts'

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url))

/** Under LAPIDARY_TEST_FAST (an emulated processor) the expensive cases are smaller. */
export const isFast = process.env.LAPIDARY_TEST_FAST !== undefined

export const oracles = ['gemma1-tiny', 'gemma2-tiny', 'gemma3-text-tiny'] as const
export type Oracle = (typeof oracles)[number]

/** The folder of any oracle, also of those that are more than text. */
export const oracleFile = (name: string) => `${fixtures}oracle/${name}`
export const oracleFolder = (name: Oracle) => oracleFile(name)
export const tinyFolder = `${fixtures}tiny-model/hf`
export const bundledModel = fileURLToPath(new URL('../../models/tiny-q4_0.gguf', import.meta.url))

export interface Expected {
  readonly ids: Int32Array
  readonly hidden: readonly Float64Array[]
  readonly logits: Float64Array
  /** The prompt and its greedy continuation. */
  readonly greedy: Int32Array
}

export function oracleExpected(name: Oracle): Expected {
  const io = readSafetensors(`${oracleFolder(name)}/io.safetensors`)
  const values = (key: string) => io.get(key)!.values
  const layers = [...io.keys()].filter((key) => key.startsWith('hidden.')).length
  return {
    ids: Int32Array.from(values('input_ids')),
    hidden: Array.from({ length: layers }, (_, layer) => values(`hidden.${layer}`)),
    logits: values('logits'),
    greedy: Int32Array.from(values('greedy_ids')),
  }
}

export interface TinyExpected {
  readonly ids: Int32Array
  /** Of the last 64 positions. */
  readonly firstHidden: Float64Array
  readonly lastHidden: Float64Array
  readonly logits: Float64Array
  /** Prompts with their greedy ids, which begin with the prompt's. */
  readonly greedy: readonly { readonly prompt: string; readonly ids: readonly number[] }[]
}

export function tinyExpected(): TinyExpected {
  const io = readSafetensors(`${fixtures}tiny-model/io.safetensors`)
  const { greedy } = JSON.parse(readFileSync(`${fixtures}tiny-model/expected.json`, 'utf8')) as {
    greedy: Record<string, { ids: number[] }>
  }
  return {
    ids: Int32Array.from(io.get('input_ids')!.values),
    firstHidden: io.get('hidden.1.last64')!.values,
    lastHidden: io.get('hidden.final.last64')!.values,
    logits: io.get('logits.last64')!.values,
    greedy: Object.entries(greedy).map(([prompt, { ids }]) => ({ prompt, ids })),
  }
}

/** A Hugging Face folder as the reference takes it. */
export function readReference(folder: string): { config: ReferenceConfig; weights: ReferenceWeights } {
  const raw = JSON.parse(readFileSync(`${folder}/config.json`, 'utf8'))
  const tensors = readSafetensors(`${folder}/model.safetensors`)
  return { config: referenceConfig(raw, tensors), weights: referenceWeights(tensors) }
}

// biome-ignore lint/suspicious/noExplicitAny: the shape of config.json is what this function states
function referenceConfig(raw: any, tensors: Map<string, Stored>): ReferenceConfig {
  const rope = raw.rope_parameters
  const of = (kind: string) => rope[kind] ?? rope
  const [local, global] = [of('sliding_attention'), of('full_attention')]
  const kinds: Kind[] = Array.from({ length: raw.num_hidden_layers }, (_, layer) =>
    raw.layer_types?.[layer] === 'sliding_attention' ? 'local' : 'global',
  )
  return {
    layers: raw.num_hidden_layers,
    hiddenSize: raw.hidden_size,
    ffnSize: raw.intermediate_size,
    queryHeads: raw.num_attention_heads,
    kvHeads: raw.num_key_value_heads,
    headDim: raw.head_dim,
    vocabulary: raw.vocab_size,
    window: raw.sliding_window ?? 0,
    kinds,
    theta: { local: local.rope_theta, global: global.rope_theta },
    factor: { local: local.factor ?? 1, global: global.factor ?? 1 },
    queryScalar: raw.query_pre_attn_scalar ?? raw.head_dim,
    attentionCap: raw.attn_logit_softcapping ?? 0,
    finalCap: raw.final_logit_softcapping ?? 0,
    eps: raw.rms_norm_eps,
    postNorms: raw.model_type !== 'gemma',
    qkNorm: raw.model_type === 'gemma3_text',
    bidirectional: false,
    embeddingScale: round(
      tensors.get('model.embed_tokens.weight')!.dtype === 'BF16' ? 'bf16' : 'f32',
      Math.sqrt(raw.hidden_size),
    ),
  }
}

function referenceWeights(tensors: Map<string, Stored>): ReferenceWeights {
  const values = (name: string) => tensors.get(`model.${name}.weight`)?.values
  const layers: ReferenceLayer[] = []
  for (let layer = 0; tensors.has(`model.layers.${layer}.input_layernorm.weight`); layer++) {
    const of = (name: string) => values(`layers.${layer}.${name}`)
    const hasPostNorms = of('pre_feedforward_layernorm') !== undefined
    layers.push({
      attentionNorm: of('input_layernorm')!,
      q: of('self_attn.q_proj')!,
      k: of('self_attn.k_proj')!,
      v: of('self_attn.v_proj')!,
      o: of('self_attn.o_proj')!,
      qNorm: of('self_attn.q_norm'),
      kNorm: of('self_attn.k_norm'),
      attentionPostNorm: hasPostNorms ? of('post_attention_layernorm') : undefined,
      ffnNorm: hasPostNorms ? of('pre_feedforward_layernorm')! : of('post_attention_layernorm')!,
      gate: of('mlp.gate_proj')!,
      up: of('mlp.up_proj')!,
      down: of('mlp.down_proj')!,
      ffnPostNorm: of('post_feedforward_layernorm'),
    })
  }
  return { embedding: values('embed_tokens')!, layers, finalNorm: values('norm')! }
}
