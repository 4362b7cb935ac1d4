/**
 * Synthetic checkpoints: the published sizes with random weights, so that speed and memory can be measured without a download.
 * @module
 */
import { type GgufTensor, storedBytes, writeGguf } from '../../checkpoint/gguf-writer.ts'
import { LapidaryError } from '../../errors.ts'
import { ggufMetadata, tokenizerMetadata } from './gguf-metadata.ts'
import { type GemmaSize, type GemmaSizeName, gemmaSizes } from './sizes.ts'
import { syntheticVocabulary } from './synthetic-vocabulary.ts'

export const syntheticTypes = ['q4_0', 'q8_0', 'bf16', 'f16'] as const
/** How a synthetic checkpoint stores its matrices. */
export type SyntheticType = (typeof syntheticTypes)[number]

/** Settings of {@link writeSynthetic}. */
export interface SyntheticOptions {
  readonly size: GemmaSizeName
  /** Of the matrices. Default `q4_0`. */
  readonly type?: SyntheticType
  /** Of the embedding, which is the head too. Default: `q8_0` where type is q4_0, else type. */
  readonly headType?: SyntheticType
  /** Default 0. */
  readonly seed?: number
  /** Fewer layers than published, for a file that is quickly written. Default: all. */
  readonly layers?: number
  /** Called after each piece that was written, with the bytes so far and in all. */
  readonly onProgress?: (done: number, total: number) => void
  readonly signal?: AbortSignal
}

/**
 * Writes a GGUF file of a published size with random weights and a made-up tokenizer of the full vocabulary. Matrices W [n, k] have mean
 * 0 and standard deviation 1/√k, norms are 1, so that activations keep their scale. The bytes depend on the options only.
 *
 * @returns Bytes of the file.
 * @throws ERR_INVALID_ARGUMENT, ERR_FILE, ERR_ABORTED
 * @example
 * await writeSynthetic('gemma-3-1b.gguf', { size: 'gemma-3-1b', type: 'q4_0', headType: 'q8_0' })
 */
export async function writeSynthetic(path: string, options: SyntheticOptions): Promise<number> {
  const { type = 'q4_0', seed = 0, onProgress, signal } = options
  const { headType = type === 'q4_0' ? 'q8_0' : type } = options
  expectOneOf('size', options.size, Object.keys(gemmaSizes))
  expectOneOf('type', type, syntheticTypes)
  expectOneOf('headType', headType, syntheticTypes)
  const size = gemmaSizes[options.size]
  const layers = options.layers ?? size.layers
  if (!Number.isInteger(layers) || layers < 1 || layers > size.layers) {
    throw invalid(`layers: expected an integer from 1 to ${size.layers}, got ${layers}`)
  }
  if (!Number.isSafeInteger(seed)) throw invalid(`seed: expected an integer, got ${seed}`)
  const vocabulary = syntheticVocabulary(size.architecture, size.vocabularySize)
  const model = {
    ...size,
    name: `Synthetic ${options.size}`,
    layers,
    normEps: 1e-6,
    layerTypes: Array.from({ length: layers }, (_, i) =>
      (i + 1) % size.period === 0 ? ('global' as const) : ('local' as const),
    ),
    type,
  }
  const metadata = [...ggufMetadata(model), ...tokenizerMetadata(vocabulary)]
  const tensors = describeTensors({ ...size, layers }, type, headType, new Pools(seed))
  return writeGguf(path, metadata, tensors, { ...(onProgress && { onProgress }), ...(signal && { signal }) })
}

function invalid(what: string): LapidaryError {
  return new LapidaryError('ERR_INVALID_ARGUMENT', `writeSynthetic: ${what}`)
}

function expectOneOf(what: string, value: string, of: readonly string[]): void {
  if (!of.includes(value)) throw invalid(`${what}: expected one of ${of.join(', ')}, got ${String(value)}`)
}

function describeTensors(size: GemmaSize, type: SyntheticType, headType: SyntheticType, pools: Pools): GgufTensor[] {
  const { architecture, layers, hiddenSize, ffnSize, headDim, vocabularySize } = size
  const queries = size.queryHeads * headDim
  const keys = size.kvHeads * headDim
  const matrix = (name: string, n: number, k: number, dtype: SyntheticType = type): GgufTensor => ({
    name: `${name}.weight`,
    dtype,
    shape: [n, k],
    data: () => pools.matrix(dtype, n, k),
  })
  const norm = (name: string, dim: number): GgufTensor => ({
    name: `${name}.weight`,
    dtype: 'f32',
    shape: [dim],
    data: () => [new Uint8Array(new Float32Array(dim).fill(1).buffer)],
  })
  const tensors = [matrix('token_embd', vocabularySize, hiddenSize, headType)]
  for (let layer = 0; layer < layers; layer++) {
    const name = (part: string): string => `blk.${layer}.${part}`
    tensors.push(
      norm(name('attn_norm'), hiddenSize),
      matrix(name('attn_q'), queries, hiddenSize),
      matrix(name('attn_k'), keys, hiddenSize),
      matrix(name('attn_v'), keys, hiddenSize),
      matrix(name('attn_output'), hiddenSize, queries),
      norm(name('ffn_norm'), hiddenSize),
      matrix(name('ffn_gate'), ffnSize, hiddenSize),
      matrix(name('ffn_up'), ffnSize, hiddenSize),
      matrix(name('ffn_down'), hiddenSize, ffnSize),
    )
    if (architecture === 'gemma3') tensors.push(norm(name('attn_q_norm'), headDim), norm(name('attn_k_norm'), headDim))
    if (architecture !== 'gemma') {
      tensors.push(norm(name('post_attention_norm'), hiddenSize), norm(name('post_ffw_norm'), hiddenSize))
    }
  }
  return [...tensors, norm('output_norm', hiddenSize)]
}

// ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Blocks in a pool, the least prime above 2^18. Tensors take their blocks from a pool again and again: making every block would take
 * minutes. As the number is prime and larger than any vocabulary here, no two rows of a matrix begin at the same place, so that no two
 * logits are equal by construction.
 */
const poolBlocks = 262147

/** 32 weights in one format: their bytes, and bytes at random with weights of standard deviation `deviation`. */
interface BlockFormat {
  readonly bytes: number
  fill(pool: Buffer, random: () => number, deviation: number): void
}

/** The scale of each block is drawn from ± [0.5, 1.5) of the mean: the sign makes the mean weight 0 though q4_0's range is lopsided. */
function randomScale(bits: number, unit: number): number {
  const magnitude = 0.5 + (bits >>> 1) / 2 ** 31
  return bits & 1 ? -magnitude * unit : magnitude * unit
}
/** The root mean square of that. */
const scaleSpread = Math.sqrt(1 + 1 / 12)

function fillScaledBlocks(bytes: number, root: number, quantum: (bits: number) => number): BlockFormat['fill'] {
  return (pool, random, deviation) => {
    const unit = deviation / root / scaleSpread
    for (let at = 0; at < pool.length; at += bytes) {
      pool.writeUInt16LE(toF16(randomScale(random(), unit)), at)
      for (let i = 2; i < bytes; i += 4) pool.writeUInt32LE(quantum(random()), at + i)
    }
  }
}

function fillFloats(encode: (value: number) => number): BlockFormat['fill'] {
  return (pool, random, deviation) => {
    const span = Math.sqrt(12) * deviation
    for (let at = 0; at < pool.length; at += 2) pool.writeUInt16LE(encode((random() / 2 ** 32 - 0.5) * span), at)
  }
}

const blockFormats: Readonly<Record<SyntheticType, BlockFormat>> = {
  // q − 8 for q from 0 to 15 has a mean square of 21.5.
  q4_0: { bytes: 18, fill: fillScaledBlocks(18, Math.sqrt(21.5), (bits) => bits) },
  // From −128 to 127: 5461.5.
  q8_0: { bytes: 34, fill: fillScaledBlocks(34, Math.sqrt(5461.5), (bits) => bits) },
  bf16: { bytes: 64, fill: fillFloats(toBf16) },
  f16: { bytes: 64, fill: fillFloats(toF16) },
}

/** @internal Random matrices from pools of blocks. */
export class Pools {
  readonly #random: () => number
  readonly #pools = new Map<string, Buffer>()

  constructor(seed: number) {
    this.#random = splitmix(seed)
  }

  /** The bytes of a matrix [n, k] in pieces. */
  *matrix(type: SyntheticType, n: number, k: number): Iterable<Uint8Array> {
    const { bytes } = blockFormats[type]
    const pool = this.#pool(type, k)
    let block = this.#random() % poolBlocks
    let left = (storedBytes(type, [n, k]) as number) / bytes
    while (left > 0) {
      const count = Math.min(left, poolBlocks - block)
      yield pool.subarray(block * bytes, (block + count) * bytes)
      left -= count
      block = 0
    }
  }

  #pool(type: SyntheticType, k: number): Buffer {
    const key = `${type} ${k}`
    const existing = this.#pools.get(key)
    if (existing) return existing
    const { bytes, fill } = blockFormats[type]
    const pool = Buffer.alloc(poolBlocks * bytes)
    fill(pool, this.#random, 1 / Math.sqrt(k))
    this.#pools.set(key, pool)
    return pool
  }
}

/** 32 random bits at a time (splitmix32, after Steele, Lea and Flood 2014). */
function splitmix(seed: number): () => number {
  let state = (seed ^ Math.floor(seed / 2 ** 32)) >>> 0
  return () => {
    state = (state + 0x9e3779b9) >>> 0
    let z = state
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
    return (z ^ (z >>> 16)) >>> 0
  }
}

const float = new Float32Array(1)
const floatBits = new Uint32Array(float.buffer)

function toBf16(value: number): number {
  float[0] = value
  const bits = floatBits[0] as number
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

/** Of magnitudes below 2^15. */
function toF16(value: number): number {
  float[0] = value
  const bits = floatBits[0] as number
  const sign = (bits >>> 16) & 0x8000
  const exponent = ((bits >>> 23) & 0xff) - 112
  // Below the least normal f16 its numbers are multiples of 2^-24.
  if (exponent <= 0) return sign | Math.round(Math.abs(value) * 2 ** 24)
  const magnitude = (exponent << 23) | (bits & 0x7fffff)
  return sign | ((magnitude + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
}
