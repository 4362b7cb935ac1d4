/**
 * A Gemma text model's description as GGUF metadata: the keys that llama.cpp and `gemmaConfig` read.
 * @module
 */

import type { GgufEntry } from '../../checkpoint/gguf-types.ts'
import { ggufArray, ggufValue } from '../../checkpoint/gguf-writer.ts'
import type { Architecture, GemmaDimensions } from './config.ts'

/** What the metadata says about a model. */
export interface GgufModel extends GemmaDimensions {
  readonly architecture: Architecture
  readonly name: string
  readonly normEps: number
  readonly layerTypes: readonly ('local' | 'global')[]
  readonly ropeTheta: { readonly local: number; readonly global: number }
  /** What positions of global layers are divided by. */
  readonly positionDivisor: number
  /** 0: none. */
  readonly attentionSoftcap: number
  /** 0: none. */
  readonly finalSoftcap: number
  /** Of the matrices. */
  readonly type: 'f32' | 'f16' | 'bf16' | 'q4_0' | 'q8_0'
}

/** A vocabulary, as GGUF's `llama` tokenizer model (SentencePiece BPE) describes it. */
export interface GgufVocabulary {
  readonly tokens: readonly string[]
  readonly scores: Float32Array
  /** 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. */
  readonly types: Int32Array
  readonly bos: number
  readonly eos: number
  readonly pad: number
  readonly unk: number
  /** The end of a turn, where the vocabulary has one. */
  readonly endOfTurn?: number
  readonly chatTemplate?: string
}

/** llama.cpp's names of what a file mostly holds (llama_ftype). */
const fileTypes: Readonly<Record<GgufModel['type'], number>> = { f32: 0, f16: 1, q4_0: 2, q8_0: 7, bf16: 32 }

/** llama.cpp's built-in pattern, which holds where a file names none. */
function builtInPattern(architecture: GgufModel['architecture'], layer: number): 'local' | 'global' {
  if (architecture === 'gemma2') return layer % 2 === 0 ? 'local' : 'global'
  return (layer + 1) % 6 === 0 ? 'global' : 'local'
}

/** The `general.*` and `<architecture>.*` keys. */
export function ggufMetadata(model: GgufModel): [string, GgufEntry][] {
  const { architecture, layerTypes } = model
  const metadata: [string, GgufEntry][] = [
    ['general.architecture', ggufValue('string', architecture)],
    ['general.name', ggufValue('string', model.name)],
  ]
  const own = (key: string, type: 'u32' | 'f32' | 'string', value: number | string): void => {
    metadata.push([`${architecture}.${key}`, ggufValue(type, value)])
  }
  own('context_length', 'u32', model.contextLength)
  own('embedding_length', 'u32', model.hiddenSize)
  own('block_count', 'u32', model.layers)
  own('feed_forward_length', 'u32', model.ffnSize)
  own('attention.head_count', 'u32', model.queryHeads)
  own('attention.head_count_kv', 'u32', model.kvHeads)
  own('attention.key_length', 'u32', model.headDim)
  own('attention.value_length', 'u32', model.headDim)
  own('attention.layer_norm_rms_epsilon', 'f32', model.normEps)
  own('rope.freq_base', 'f32', model.ropeTheta.global)
  if (model.window > 0) {
    own('attention.sliding_window', 'u32', model.window)
    if (layerTypes.some((type, layer) => type !== builtInPattern(architecture, layer))) {
      const pattern = layerTypes.map((type) => type === 'local')
      metadata.push([`${architecture}.attention.sliding_window_pattern`, ggufArray('bool', pattern)])
    }
    if (architecture === 'gemma3') own('rope.freq_base_swa', 'f32', model.ropeTheta.local)
  }
  if (model.positionDivisor !== 1) {
    own('rope.scaling.type', 'string', 'linear')
    own('rope.scaling.factor', 'f32', model.positionDivisor)
  }
  if (model.attentionSoftcap > 0) own('attn_logit_softcapping', 'f32', model.attentionSoftcap)
  if (model.finalSoftcap > 0) own('final_logit_softcapping', 'f32', model.finalSoftcap)
  metadata.push(...fileTypeMetadata(model.type))
  return metadata
}

/** What the file mostly holds. */
export function fileTypeMetadata(type: GgufModel['type']): [string, GgufEntry][] {
  const fileType: [string, GgufEntry] = ['general.file_type', ggufValue('u32', fileTypes[type])]
  return type.startsWith('q') ? [fileType, ['general.quantization_version', ggufValue('u32', 2)]] : [fileType]
}

/** The `tokenizer.*` keys. */
export function tokenizerMetadata(vocabulary: GgufVocabulary): [string, GgufEntry][] {
  const { tokens, scores, types, bos, eos, pad, unk, endOfTurn, chatTemplate } = vocabulary
  return [
    ['tokenizer.ggml.model', ggufValue('string', 'llama')],
    ['tokenizer.ggml.pre', ggufValue('string', 'default')],
    ['tokenizer.ggml.tokens', ggufArray('string', tokens)],
    ['tokenizer.ggml.scores', ggufArray('f32', scores)],
    ['tokenizer.ggml.token_type', ggufArray('i32', types)],
    ['tokenizer.ggml.bos_token_id', ggufValue('u32', bos)],
    ['tokenizer.ggml.eos_token_id', ggufValue('u32', eos)],
    ['tokenizer.ggml.padding_token_id', ggufValue('u32', pad)],
    ['tokenizer.ggml.unknown_token_id', ggufValue('u32', unk)],
    ...(endOfTurn === undefined
      ? []
      : [['tokenizer.ggml.eot_token_id', ggufValue('u32', endOfTurn)] as [string, GgufEntry]]),
    ['tokenizer.ggml.add_bos_token', ggufValue('bool', true)],
    ['tokenizer.ggml.add_eos_token', ggufValue('bool', false)],
    ['tokenizer.ggml.add_space_prefix', ggufValue('bool', false)],
    ...(chatTemplate === undefined
      ? []
      : [['tokenizer.chat_template', ggufValue('string', chatTemplate)] as [string, GgufEntry]]),
  ]
}
