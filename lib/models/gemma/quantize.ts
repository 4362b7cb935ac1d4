/**
 * Quantising a checkpoint: safetensors or a float GGUF file in, a Q4_0 or Q8_0 GGUF file out, as llama.cpp's converter would name and
 * arrange it.
 * @module
 */
import { statSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import { type Checkpoint, openCheckpoint, type StoredTensor } from '../../checkpoint/checkpoint.ts'
import { parseGguf } from '../../checkpoint/gguf.ts'
import type { GgufEntry } from '../../checkpoint/gguf-types.ts'
import { type GgufTensor, storedBytes, throwIfAborted, writeGguf } from '../../checkpoint/gguf-writer.ts'
import { withFile } from '../../checkpoint/source.ts'
import type { Device } from '../../device.ts'
import type { DType } from '../../dtype.ts'
import { LapidaryError } from '../../errors.ts'
import { quantize } from '../../ops/quantize.ts'
import { cast } from '../../ops/row-ops.ts'
import { scope } from '../../scope.ts'
import { Tensor } from '../../tensor.ts'
import { type GemmaConfig, gemmaConfig } from './config.ts'
import { fileTypeMetadata, type GgufVocabulary, ggufMetadata, tokenizerMetadata } from './gguf-metadata.ts'
import { control, readVocabulary, userDefined } from './gguf-vocabulary.ts'
import { embeddingTensor, type LayerWeights, modelWeights } from './weights.ts'

export const quantizedTypes = ['q4_0', 'q8_0'] as const
export type QuantizedType = (typeof quantizedTypes)[number]
export const quantizedHeadTypes = ['q4_0', 'q8_0', 'bf16', 'f16'] as const
export type QuantizedHeadType = (typeof quantizedHeadTypes)[number]

/** Settings of {@link quantizeCheckpoint}. */
export interface QuantizeCheckpointOptions {
  /** Of the matrices. */
  readonly type: QuantizedType
  /** Of the embedding, and of the head where it is a matrix of its own. Default `q8_0`. */
  readonly headType?: QuantizedHeadType
  /** Called as the file grows, with bytes of weights written and bytes in all. */
  readonly onProgress?: (done: number, total: number) => void
  readonly signal?: AbortSignal
}

/** Weights on their way at a time: 16 MiB in f32. */
const chunkWeights = 1 << 22

/** In the order of llama.cpp's files. */
const layerNames: readonly (readonly [part: keyof LayerWeights, name: string])[] = [
  ['q', 'attn_q'],
  ['k', 'attn_k'],
  ['v', 'attn_v'],
  ['output', 'attn_output'],
  ['qNorm', 'attn_q_norm'],
  ['kNorm', 'attn_k_norm'],
  ['gate', 'ffn_gate'],
  ['up', 'ffn_up'],
  ['down', 'ffn_down'],
  ['attentionNorm', 'attn_norm'],
  ['attentionPostNorm', 'post_attention_norm'],
  ['ffnNorm', 'ffn_norm'],
  ['ffnPostNorm', 'post_ffw_norm'],
]

/**
 * Quantises a Gemma 1, 2 or 3 text model (of a multimodal checkpoint its text half) into one GGUF file: matrices by the `quantize` op,
 * byte for byte as ggml's reference quantiser; norms in f32 with the 1 added that GGUF expects; tokenizer and chat template in the
 * metadata; rows of the embedding beyond the tokenizer's pieces cut off. Runs in pieces: memory stays within some tens of megabytes.
 *
 * @param input What {@link openCheckpoint} takes, or what it gave. Weights must be f32, f16 or bf16.
 * @param output The file to write; it appears when it is complete.
 * @returns Bytes of the file.
 * @throws ERR_CHECKPOINT_UNSUPPORTED if the input is already quantised or is no such model, ERR_CHECKPOINT_CORRUPT, ERR_FILE,
 *   ERR_INVALID_ARGUMENT, ERR_ABORTED
 * @example
 * await quantizeCheckpoint(device, 'gemma-3-1b-it', 'gemma-3-1b-it-q4_0.gguf', { type: 'q4_0' })
 */
export async function quantizeCheckpoint(
  device: Device,
  input: string | Checkpoint,
  output: string,
  options: QuantizeCheckpointOptions,
): Promise<number> {
  const { type, headType = 'q8_0', onProgress, signal } = options
  expectOneOf('type', type, quantizedTypes)
  expectOneOf('headType', headType, quantizedHeadTypes)
  throwIfAborted(signal, output)
  const checkpoint = typeof input === 'string' ? await openCheckpoint(input) : input
  expectOtherFile(checkpoint, output)
  const config = gemmaConfig(checkpoint)
  if (config.architecture === 'gemma-embedding') {
    throw new LapidaryError(
      'ERR_CHECKPOINT_UNSUPPORTED',
      `${checkpoint.path}: expected a Gemma 1, 2 or 3 text model, got EmbeddingGemma`,
    )
  }
  const { metadata, pieces } = describeOutput(checkpoint, config, type)
  expectSameModel(checkpoint, config, metadata)
  const tensors = listTensors(device, checkpoint, config, pieces, { type, headType })
  return writeGguf(output, metadata, tensors, { ...(onProgress && { onProgress }), ...(signal && { signal }) })
}

/** The original cannot be made again from what is quantised. */
function expectOtherFile(checkpoint: Checkpoint, output: string): void {
  const place = (file: string): string | undefined => {
    const there = statSync(file, { bigint: true, throwIfNoEntry: false })
    return there && `${there.dev}:${there.ino}`
  }
  const target = place(output)
  if (target === undefined || !checkpoint.files.some((file) => place(file) === target)) return
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `quantizeCheckpoint: output: expected another file than the input's own, got ${output}`,
  )
}

function expectOneOf(what: string, value: string, of: readonly string[]): void {
  if (of.includes(value)) return
  const got = String(value)
  throw new LapidaryError(
    'ERR_INVALID_ARGUMENT',
    `quantizeCheckpoint: ${what}: expected one of ${of.join(', ')}, got ${got}`,
  )
}

// ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────

interface Description {
  readonly metadata: [string, GgufEntry][]
  /** Of the tokenizer. */
  readonly pieces: number
}

function describeOutput(checkpoint: Checkpoint, config: GemmaConfig, type: QuantizedType): Description {
  if (checkpoint.format === 'gguf') return copyMetadata(checkpoint, config, type)
  const vocabulary = firstPieces(readVocabulary(checkpoint), config.vocabularySize)
  const { tokens } = vocabulary
  const positionDivisor = 1 / config.positionScale.global
  const model = { ...config, name: basename(resolve(checkpoint.path)), positionDivisor, type }
  return { metadata: [...ggufMetadata(model), ...tokenizerMetadata(vocabulary)], pieces: tokens.length }
}

/**
 * Gemma 3's tokenizer ends with a marker for images, for which its text models have no row. Added pieces that the model cannot read are left
 * out; ordinary ones, which text would need, mean that the files do not belong together.
 */
function firstPieces(vocabulary: GgufVocabulary, count: number): GgufVocabulary {
  const { tokens, scores, types } = vocabulary
  if (types.subarray(count).some((type) => type !== control && type !== userDefined)) {
    return vocabulary
  }
  return { ...vocabulary, tokens: tokens.slice(0, count), scores: scores.slice(0, count), types: types.slice(0, count) }
}

/**
 * GGUF has no key for the query scale, nor for some other values where they are not what readers assume: a model that has such values
 * would silently become another.
 */
function expectSameModel(
  checkpoint: Checkpoint,
  config: GemmaConfig,
  metadata: readonly (readonly [string, GgufEntry])[],
): void {
  const embedding = embeddingTensor(checkpoint)
  const read = gemmaConfig({
    ...checkpoint,
    format: 'gguf',
    tensors: new Map(embedding && [['token_embd.weight', embedding]]),
    config: Object.fromEntries(metadata.map(([key, entry]) => [key, entry.value])),
  })
  const fixed: readonly (keyof GemmaConfig)[] = ['vocabularySize', 'normBias', 'embeddingScale']
  for (const [key, value] of Object.entries(config)) {
    const got = read[key as keyof GemmaConfig]
    if (fixed.includes(key as keyof GemmaConfig) || isNearly(value, got)) continue
    throw new LapidaryError(
      'ERR_CHECKPOINT_UNSUPPORTED',
      `${checkpoint.path}: ${key}: expected ${JSON.stringify(got)}, as readers of GGUF assume, got ${JSON.stringify(value)}: GGUF has no key for it`,
    )
  }
}

/** Whether two values of a configuration are the same, numbers to the precision of f32. */
function isNearly(a: unknown, b: unknown): boolean {
  if (typeof a === 'number' && typeof b === 'number') return Math.abs(a - b) <= 1e-6 * Math.abs(a)
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return a === b
  const [left, right] = [Object.entries(a), Object.entries(b)]
  return left.length === right.length && left.every(([key, value]) => isNearly(value, (b as typeof a)[key as never]))
}

/** What a GGUF file says, but for what quantising changes. */
function copyMetadata(checkpoint: Checkpoint, config: GemmaConfig, type: QuantizedType): Description {
  const { metadata } = withFile(checkpoint.files[0] as string, parseGguf)
  const kept = [...metadata].filter(([key]) => !key.startsWith('split.') && !changedKeys.has(key))
  const tokens = checkpoint.config['tokenizer.ggml.tokens']
  return {
    metadata: [...kept, ...fileTypeMetadata(type)],
    pieces: Array.isArray(tokens) ? tokens.length : config.vocabularySize,
  }
}

const changedKeys = new Set(['general.file_type', 'general.quantization_version', 'general.alignment'])

// ── tensors ──────────────────────────────────────────────────────────────────────────────────────────────────────────

function listTensors(
  device: Device,
  checkpoint: Checkpoint,
  config: GemmaConfig,
  pieces: number,
  options: { readonly type: QuantizedType; readonly headType: QuantizedHeadType },
): GgufTensor[] {
  const { type, headType } = options
  const weights = modelWeights(checkpoint, config)
  if (pieces > config.vocabularySize) {
    throw new LapidaryError(
      'ERR_CHECKPOINT_CORRUPT',
      `${checkpoint.path}: tensor ${weights.embedding.name}: expected a row for each of the tokenizer's ${pieces} pieces, got ${config.vocabularySize}`,
    )
  }
  const norm = (name: string, stored: StoredTensor): GgufTensor => ({
    name: `${name}.weight`,
    dtype: 'f32',
    shape: stored.shape,
    data: () => normBytes(device, stored, config.normBias),
  })
  const matrix = (name: string, stored: StoredTensor, dtype: DType, rows = stored.shape[0] as number): GgufTensor => {
    expectFloat(stored)
    const columns = stored.shape[1] as number
    if (columns % 32 !== 0) {
      throw new LapidaryError(
        'ERR_CHECKPOINT_UNSUPPORTED',
        `${stored.file}: tensor ${stored.name}: expected rows of a multiple of 32 weights (${dtype}), got ${columns}`,
      )
    }
    const data = (): AsyncIterable<Uint8Array> => matrixBytes(device, stored, rows, dtype)
    return { name: `${name}.weight`, dtype, shape: [rows, columns], data }
  }
  const tensors = [matrix('token_embd', weights.embedding, headType, pieces)]
  for (const [index, layer] of weights.layers.entries()) {
    for (const [part, name] of layerNames) {
      const stored = layer[part]
      if (stored === undefined) continue
      if ('weight' in stored) tensors.push(matrix(`blk.${index}.${name}`, stored.weight, type))
      else tensors.push(norm(`blk.${index}.${name}`, stored))
    }
  }
  tensors.push(norm('output_norm', weights.finalNorm))
  if (weights.head) tensors.push(matrix('output', weights.head, headType, pieces))
  return tensors
}

function expectFloat(stored: StoredTensor): void {
  const { dtype } = stored
  if (dtype === 'f32' || dtype === 'f16' || dtype === 'bf16') return
  throw new LapidaryError(
    'ERR_CHECKPOINT_UNSUPPORTED',
    `${stored.file}: tensor ${stored.name}: expected f32, f16 or bf16 weights, got ${stored.storedType}: quantise from the original checkpoint`,
  )
}

async function* normBytes(device: Device, stored: StoredTensor, bias: number): AsyncIterable<Uint8Array> {
  expectFloat(stored)
  const { file, shape, offset } = stored
  using weights = Tensor.map(device, file, { shape, dtype: stored.dtype as DType, offset })
  const values = await weights.readF32()
  yield new Uint8Array(values.map((value) => value + bias).buffer)
}

/** The first rows of a matrix, in another type, some rows at a time; the next are computed while the caller writes these. */
async function* matrixBytes(
  device: Device,
  stored: StoredTensor,
  rows: number,
  dtype: DType,
): AsyncIterable<Uint8Array> {
  const columns = stored.shape[1] as number
  const step = Math.max(1, Math.floor(chunkWeights / columns))
  const from = stored.dtype as DType
  const rowBytes = storedBytes(from, [1, columns]) as number
  const compute = (row: number): Promise<ArrayBufferView> => {
    using chunk = scope(() => {
      const shape = [Math.min(step, rows - row), columns]
      const weights = Tensor.map(device, stored.file, { shape, dtype: from, offset: stored.offset + row * rowBytes })
      return dtype === 'q4_0' || dtype === 'q8_0' ? quantize(weights, { format: dtype }) : cast(weights, dtype)
    })
    const bytes = chunk.read()
    // An error is thrown where the bytes are awaited; a caller that stops before that does not want to know.
    bytes.catch(() => undefined)
    return bytes
  }
  let next = compute(0)
  for (let row = 0; row < rows; row += step) {
    const { buffer, byteOffset, byteLength } = await next
    if (row + step < rows) next = compute(row + step)
    yield new Uint8Array(buffer, byteOffset, byteLength)
  }
}
