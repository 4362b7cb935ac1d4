/**
 * Models of random weights in any stored form, as files and as the reference takes them: for architectures and formats of which no other
 * fixture exists.
 */

import { mkdirSync, writeFileSync } from 'node:fs'
import { ggufArray, ggufValue, writeGguf } from '../../lib/checkpoint/gguf-writer.ts'
import type { DType } from '../../lib/index.ts'
import { orderedForms, randomWeights, type StoredWeights, type WeightForm, weightForms } from '../support/formats.ts'
import type { HostTensor } from '../support/host-tensor.ts'
import { Random } from '../support/random.ts'
import type { Kind, ReferenceConfig, ReferenceLayer, ReferenceWeights } from './reference.ts'

export type Family = 'gemma' | 'gemma2' | 'gemma3' | 'gemma-embedding'

type Matrix = 'q' | 'k' | 'v' | 'o' | 'gate' | 'up' | 'down'
type Norm = 'attentionNorm' | 'qNorm' | 'kNorm' | 'attentionPostNorm' | 'ffnNorm' | 'ffnPostNorm'

interface Names {
  readonly hf: string
  readonly gguf: string
}

const matrixNames: Record<Matrix, Names> = {
  q: { hf: 'self_attn.q_proj', gguf: 'attn_q' },
  k: { hf: 'self_attn.k_proj', gguf: 'attn_k' },
  v: { hf: 'self_attn.v_proj', gguf: 'attn_v' },
  o: { hf: 'self_attn.o_proj', gguf: 'attn_output' },
  gate: { hf: 'mlp.gate_proj', gguf: 'ffn_gate' },
  up: { hf: 'mlp.up_proj', gguf: 'ffn_up' },
  down: { hf: 'mlp.down_proj', gguf: 'ffn_down' },
}

const normNames: Record<Norm, Names> = {
  attentionNorm: { hf: 'input_layernorm', gguf: 'attn_norm' },
  qNorm: { hf: 'self_attn.q_norm', gguf: 'attn_q_norm' },
  kNorm: { hf: 'self_attn.k_norm', gguf: 'attn_k_norm' },
  attentionPostNorm: { hf: 'post_attention_layernorm', gguf: 'post_attention_norm' },
  ffnNorm: { hf: 'pre_feedforward_layernorm', gguf: 'ffn_norm' },
  ffnPostNorm: { hf: 'post_feedforward_layernorm', gguf: 'post_ffw_norm' },
}

export interface RandomModelOptions {
  readonly family: Family
  /** One layer for each. */
  readonly kinds: readonly Kind[]
  /** The stored form of a matrix, by a name of `weightForms` or `orderedForms`. Default bf16 everywhere. */
  readonly form?: (matrix: Matrix | 'embedding' | 'dense', layer: number) => string
  /** Sizes that differ from hidden 64, ffn 96, 3 query heads and 1 key-value head of 32, 80 pieces, window 8. */
  readonly sizes?: Partial<Pick<ReferenceConfig, 'hiddenSize' | 'ffnSize' | 'headDim' | 'queryHeads' | 'kvHeads'>>
}

interface Part {
  readonly names: Names
  readonly form: WeightForm
  readonly stored: StoredWeights
}

export class RandomModel {
  readonly family: Family
  readonly config: ReferenceConfig
  readonly weights: ReferenceWeights
  readonly #embedding: StoredWeights
  readonly #embeddingForm: string
  readonly #finalNorm: HostTensor
  readonly #parts: Part[] = []
  readonly #norms: { readonly names: Names; readonly weight: HostTensor }[] = []
  readonly #dense: readonly StoredWeights[]

  constructor(seed: string, { family, kinds, form = () => 'bf16', sizes = {} }: RandomModelOptions) {
    const random = Random.named(seed)
    const isGemma3 = family === 'gemma3' || family === 'gemma-embedding'
    const base = { hiddenSize: 64, ffnSize: 96, headDim: 32, queryHeads: 3, kvHeads: 1, ...sizes }
    const { hiddenSize, ffnSize, headDim, queryHeads, kvHeads } = base
    this.family = family
    this.config = {
      ...base,
      layers: kinds.length,
      vocabulary: 80,
      window: family === 'gemma' ? 0 : 8,
      kinds,
      theta: { local: 10_000, global: isGemma3 ? 1_000_000 : 10_000 },
      factor: { local: 1, global: 1 },
      queryScalar: headDim,
      attentionCap: family === 'gemma2' ? 5 : 0,
      finalCap: family === 'gemma2' ? 4 : 0,
      eps: 1e-6,
      postNorms: family !== 'gemma',
      qkNorm: isGemma3,
      bidirectional: family === 'gemma-embedding',
      // √64 and √256: exact in every dtype.
      embeddingScale: Math.sqrt(hiddenSize),
    }
    const draw = (name: string, rows: number, columns: number) => {
      const found = [...weightForms, ...orderedForms].find((candidate) => candidate.name === name)
      if (!found) throw new Error(`no weight form ${name}`)
      return { form: found, stored: randomWeights(random, found, rows, columns, 2 / Math.sqrt(columns)) }
    }
    const norm = (size: number) => random.normal('f32', [size], 0.2)
    this.#embeddingForm = form('embedding', -1)
    this.#embedding = draw(this.#embeddingForm, this.config.vocabulary, hiddenSize).stored
    const layers = kinds.map((_, layer): ReferenceLayer => {
      const matrix = (name: Matrix, rows: number, columns: number) => {
        const drawn = draw(form(name, layer), rows, columns)
        this.#parts.push({ names: prefixed(matrixNames[name], layer), ...drawn })
        return drawn.stored.values
      }
      const vector = (name: Norm, size: number) => {
        const weight = norm(size)
        const names =
          family === 'gemma' && name === 'ffnNorm'
            ? { ...normNames[name], hf: 'post_attention_layernorm' }
            : normNames[name]
        this.#norms.push({ names: prefixed(names, layer), weight })
        return weight.values
      }
      return {
        attentionNorm: vector('attentionNorm', hiddenSize),
        q: matrix('q', queryHeads * headDim, hiddenSize),
        k: matrix('k', kvHeads * headDim, hiddenSize),
        v: matrix('v', kvHeads * headDim, hiddenSize),
        o: matrix('o', hiddenSize, queryHeads * headDim),
        ...(isGemma3 && { qNorm: vector('qNorm', headDim), kNorm: vector('kNorm', headDim) }),
        ...(family !== 'gemma' && { attentionPostNorm: vector('attentionPostNorm', hiddenSize) }),
        ffnNorm: vector('ffnNorm', hiddenSize),
        gate: matrix('gate', ffnSize, hiddenSize),
        up: matrix('up', ffnSize, hiddenSize),
        down: matrix('down', hiddenSize, ffnSize),
        ...(family !== 'gemma' && { ffnPostNorm: vector('ffnPostNorm', hiddenSize) }),
      }
    })
    this.#finalNorm = norm(hiddenSize)
    this.#dense =
      family === 'gemma-embedding'
        ? [
            draw(form('dense', 0), 2 * hiddenSize, hiddenSize).stored,
            draw(form('dense', 1), hiddenSize, 2 * hiddenSize).stored,
          ]
        : []
    this.weights = {
      embedding: this.#embedding.values,
      layers,
      finalNorm: this.#finalNorm.values,
      dense: this.#dense.map(({ values }) => values),
    }
  }

  /** A Hugging Face folder; `quantization` is config.json's quantization_config. Embedding models get sentence-transformers' folders. */
  writeHf(folder: string, { prefix = 'model.', quantization }: { prefix?: string; quantization?: object } = {}): void {
    const { config, family } = this
    const tensors: [string, HostTensor][] = [
      [`${prefix}embed_tokens.weight`, this.#embedding.weight],
      [`${prefix}norm.weight`, this.#finalNorm],
      ...this.#norms.map(({ names, weight }): [string, HostTensor] => [`${prefix}${names.hf}.weight`, weight]),
      ...this.#parts.flatMap((part) => hfTensors(`${prefix}${part.names.hf}`, part)),
    ]
    const json = {
      model_type: { gemma: 'gemma', gemma2: 'gemma2', gemma3: 'gemma3_text', 'gemma-embedding': 'gemma3_text' }[family],
      vocab_size: config.vocabulary,
      hidden_size: config.hiddenSize,
      intermediate_size: config.ffnSize,
      num_hidden_layers: config.layers,
      num_attention_heads: config.queryHeads,
      num_key_value_heads: config.kvHeads,
      head_dim: config.headDim,
      max_position_embeddings: 512,
      layer_types: config.kinds.map((kind) => (kind === 'local' ? 'sliding_attention' : 'full_attention')),
      ...(config.window > 0 && { sliding_window: config.window }),
      query_pre_attn_scalar: config.queryScalar,
      attn_logit_softcapping: config.attentionCap || null,
      final_logit_softcapping: config.finalCap || null,
      ...(config.bidirectional && { use_bidirectional_attention: true }),
      ...(quantization && { quantization_config: quantization }),
    }
    writeSafetensors(`${folder}/model.safetensors`, tensors)
    writeFileSync(`${folder}/config.json`, JSON.stringify(json))
    for (const [index, { weight }] of this.#dense.entries()) {
      const dense = `${folder}/${index + 2}_Dense`
      mkdirSync(dense)
      writeSafetensors(`${dense}/model.safetensors`, [['linear.weight', weight]])
      const [out, size] = weight.shape
      const identity = 'torch.nn.modules.linear.Identity'
      const settings = { in_features: size, out_features: out, bias: false, activation_function: identity }
      writeFileSync(`${dense}/config.json`, JSON.stringify(settings))
    }
  }

  /** A GGUF file: norm weights with 1 added. */
  async writeGguf(path: string): Promise<void> {
    const { config, family } = this
    const u32 = (key: string, value: number) => [`${family}.${key}`, ggufValue('u32', value)] as const
    const f32 = (key: string, value: number) => [`${family}.${key}`, ggufValue('f32', value)] as const
    const tensor = (name: string, { dtype, shape, data }: HostTensor) => ({
      name: `${name}.weight`,
      dtype: dtype as DType,
      shape,
      data: () => [new Uint8Array(data.buffer, data.byteOffset, data.byteLength)],
    })
    const norm = (name: string, weight: HostTensor) =>
      tensor(name, { ...weight, data: Float32Array.from(weight.values, (value) => value + 1) })
    await writeGguf(
      path,
      [
        ['general.architecture', ggufValue('string', family)],
        u32('context_length', 512),
        u32('embedding_length', config.hiddenSize),
        u32('block_count', config.layers),
        u32('feed_forward_length', config.ffnSize),
        u32('attention.head_count', config.queryHeads),
        u32('attention.head_count_kv', config.kvHeads),
        u32('attention.key_length', config.headDim),
        u32('attention.value_length', config.headDim),
        f32('attention.layer_norm_rms_epsilon', config.eps),
        f32('rope.freq_base', config.theta.global),
        ...(config.window > 0
          ? [
              u32('attention.sliding_window', config.window),
              [
                `${family}.attention.sliding_window_pattern`,
                ggufArray(
                  'bool',
                  config.kinds.map((kind) => kind === 'local'),
                ),
              ] as const,
            ]
          : []),
        ...(family === 'gemma2'
          ? [f32('attn_logit_softcapping', config.attentionCap), f32('final_logit_softcapping', config.finalCap)]
          : []),
      ],
      [
        tensor('token_embd', this.#embedding.weight),
        norm('output_norm', this.#finalNorm),
        ...this.#norms.map(({ names, weight }) => norm(names.gguf, weight)),
        ...this.#parts.map(({ names, stored }) => tensor(names.gguf, stored.weight)),
        ...this.#dense.map(({ weight }, index) => tensor(`dense_${index + 2}`, weight)),
      ],
    )
  }
}

function prefixed({ hf, gguf }: Names, layer: number): Names {
  return { hf: `layers.${layer}.${hf}`, gguf: `blk.${layer}.${gguf}` }
}

/** The tensors of one matrix, under the names of its quantisation. */
function hfTensors(prefix: string, { form, stored }: Part): [string, HostTensor][] {
  const { weight, scales, zeros, groupIndex } = stored
  const named = (names: readonly [string, string, string, string?]): [string, HostTensor][] => [
    [`${prefix}.${names[0]}`, weight],
    ...(scales ? [[`${prefix}.${names[1]}`, scales] as [string, HostTensor]] : []),
    ...(zeros ? [[`${prefix}.${names[2]}`, zeros] as [string, HostTensor]] : []),
    ...(groupIndex ? [[`${prefix}.${names[3]}`, groupIndex] as [string, HostTensor]] : []),
  ]
  if (form.format === 'compressed_tensors')
    return named(['weight_packed', 'weight_scale', 'weight_zero_point', 'weight_g_idx'])
  if (form.format === 'gptq' || form.format === 'awq') return named(['qweight', 'scales', 'qzeros', 'g_idx'])
  return [[`${prefix}.weight`, weight]]
}

const safetensorsTypes: Partial<Record<HostTensor['dtype'], string>> = {
  f32: 'F32',
  f16: 'F16',
  bf16: 'BF16',
  i32: 'I32',
  i8: 'I8',
}

export function writeSafetensors(path: string, tensors: readonly (readonly [string, HostTensor])[]): void {
  let offset = 0
  const header: Record<string, object> = {}
  const pieces: Uint8Array[] = []
  for (const [name, { dtype, shape, data }] of tensors) {
    const type = safetensorsTypes[dtype]
    if (!type) throw new Error(`safetensors has no ${dtype}`)
    header[name] = { dtype: type, shape, data_offsets: [offset, offset + data.byteLength] }
    pieces.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    offset += data.byteLength
  }
  const text = JSON.stringify(header)
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  writeFileSync(path, Buffer.concat([length, padded, ...pieces]))
}
