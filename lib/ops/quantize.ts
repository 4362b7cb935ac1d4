/**
 * quantize and dequantize: numbers to stored weight formats and back.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const quantizeFormats = ['q4_0', 'q8_0', 'i4'] as const
const scaleDtypes = ['f16', 'bf16'] as const
const outputDtypes = ['f32', 'bf16'] as const

/** @internal The op behind `quantize`. */
export const quantizeOp: Op = defineOp('quantize', {
  inputs: ['x'],
  attributes: ['format', 'groupSize', 'scaleDtype'],
  outputs: ['out', 'scales'],
})

/** @internal The op behind `dequantize`. */
export const dequantizeOp: Op = defineOp('dequantize', {
  inputs: ['w'],
  attributes: ['outputDtype', 'scale'],
  outputs: ['out'],
})

/** {@link quantize} to the blocks of a file format. */
export interface QuantizeBlocksOptions {
  readonly format: 'q4_0' | 'q8_0'
}

/** {@link quantize} to codes with one scale per group. */
export interface QuantizeGroupsOptions {
  readonly format: 'i4'
  /** Columns that share a scale. Default 32. */
  readonly groupSize?: 32 | 64 | 128
  /** Default bf16. */
  readonly scaleDtype?: 'f16' | 'bf16'
}

/** 4-bit integers as compressed-tensors stores them; `packWeights(packed, { format: 'compressed_tensors', scales })` takes them. */
export interface QuantizedGroups {
  /** i32 [N, K/8]: q + 8, eight to a word, lowest nibble first. */
  readonly packed: Tensor
  /** [N, K/groupSize] */
  readonly scales: Tensor
}

/**
 * Rounds x [N, K] to a stored weight format.
 *
 * `q4_0` and `q8_0` follow ggml's reference quantisers operation for operation, so that files come out byte for byte alike. `i4`: s =
 * max|x|/7 rounded to scaleDtype, q = x/s rounded half to even and clipped to −8 … 7, per group.
 * A block of zeros has scale 0. A block with a NaN or an infinity has scale NaN. Scales beyond the scale's dtype become infinite.
 *
 * @param x f32, f16 or bf16 [N, K], rows may be strided; K a multiple of 32 (`i4`: of groupSize).
 * @returns A tensor [N, K] of the block dtype; for `i4` {@link QuantizedGroups}.
 * @throws ERR_DTYPE_UNSUPPORTED, ERR_SHAPE_MISMATCH
 * @example
 * const weight = packWeights(quantize(x, { format: 'q4_0' }))
 */
export function quantize(x: Tensor, options: QuantizeBlocksOptions): Tensor
export function quantize(x: Tensor, options: QuantizeGroupsOptions): QuantizedGroups
export function quantize(x: Tensor, options: QuantizeBlocksOptions | QuantizeGroupsOptions): Tensor | QuantizedGroups {
  const format = choiceIndex(quantizeFormats, options.format, 'format')
  if (options.format !== 'i4') return quantizeOp.one([x], [format, undefined, undefined])
  const scaleDtype = choiceIndex(scaleDtypes, options.scaleDtype, 'scaleDtype')
  const [packed, scales] = quantizeOp.all([x], [format, options.groupSize, scaleDtype]) as [Tensor, Tensor]
  return { packed, scales }
}

/** Settings of {@link dequantize}. */
export interface DequantizeOptions {
  /** Default f32. */
  readonly outputDtype?: 'f32' | 'bf16'
  /** The tensor scale of stored sfp8 (packed matrices hold theirs). Default 1. */
  readonly scale?: number
}

/**
 * Expands a weight matrix to floats. f32 is exact for most formats; it is rounded once where a format subtracts a minimum (q4_1, q5_1, q4_k,
 * q5_k) or has an f32 scale. bf16 rounds that to nearest even.
 *
 * @param w [N, K] of any stored dtype (plain rows may be strided), or packed by `packWeights` or `stackWeights`.
 * @returns f32 or bf16 [N, K]
 * @throws ERR_DTYPE_UNSUPPORTED
 * @example
 * const exact = await dequantize(weight).readF32()
 */
export function dequantize(w: Tensor, options: DequantizeOptions = {}): Tensor {
  const { outputDtype, scale } = options
  return dequantizeOp.one([w], [choiceIndex(outputDtypes, outputDtype, 'outputDtype'), scale])
}
