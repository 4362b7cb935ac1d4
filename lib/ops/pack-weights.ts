/**
 * packWeights and stackWeights: weight matrices in the layout that `matmul` streams.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

/** The stored formats of weights that {@link packWeights} takes. */
export const weightFormats = [
  'stored',
  'i8_channel',
  'i4_channel',
  'gptq',
  'gptq_v2',
  'awq',
  'compressed_tensors',
] as const
/** How a checkpoint stores a weight matrix. `stored`: its dtype says it all (floats, GGUF blocks, sfp8). */
export type WeightFormat = (typeof weightFormats)[number]

const interleaves = ['rows', 'gate_up'] as const

/** @internal The op behind `packWeights`. */
export const packWeightsOp: Op = defineOp('pack_weights', {
  inputs: ['weight', 'scales?', 'zeros?', 'columnOrder?'],
  attributes: ['format', 'groupSize', 'scale'],
  outputs: ['packed'],
})

/** @internal The op behind `stackWeights`. */
export const stackWeightsOp: Op = defineOp('stack_weights', {
  inputs: ['a', 'b', 'c?'],
  attributes: ['interleave'],
  outputs: ['packed'],
})

/** Settings of {@link packWeights}. */
export interface PackWeightsOptions {
  /** Default `stored`. */
  readonly format?: WeightFormat
  /** Of the integer formats, see {@link packWeights}. */
  readonly scales?: Tensor
  /** Zero points of gptq, awq and compressed_tensors; without them 8, the middle of 0 … 15. */
  readonly zeros?: Tensor
  /**
   * i32 [K], of the i4 groups: column j of the result is column columnOrder[j] of the weight, in group j / groupSize; give `matmul`
   * `gatherColumns(x, columnOrder)`. With the columns of each group together, that is GPTQ's activation order (`g_idx`).
   */
  readonly columnOrder?: Tensor
  /** Columns per scale: 32, 64, 128, or 0 for one scale per row. Default: from the shape of `scales`. */
  readonly groupSize?: 0 | 32 | 64 | 128
  /** The tensor scale of stored sfp8. Default 1. */
  readonly scale?: number
}

/**
 * Packs a weight matrix W [N, K] for `matmul`. No weight changes: `dequantize(packWeights(w))` has the same bits as `dequantize(w)`.
 * Done once, at load: the result takes the place of `weight`, which may then be disposed.
 *
 * | format | weight | scales | zeros |
 * | --- | --- | --- | --- |
 * | stored | any stored dtype [N, K] | – | – |
 * | i8_channel | i8 [N, K] | [N] or [N, 1] f32, f16 or bf16 | – |
 * | i4_channel | u8 [N, K/2], low nibble first, q + 8 | [N] or [N, 1] f32, f16 or bf16 | – |
 * | gptq | i32 [K/8, N] | [G, N] f16 or bf16 | i32 [G, N/8], holding z − 1 |
 * | gptq_v2 | i32 [K/8, N] | [G, N] f16 or bf16 | i32 [G, N/8] |
 * | awq | i32 [K, N/8] | [G, N] f16 or bf16 | i32 [G, N/8] |
 * | compressed_tensors | i32 [N, K/8] | [N, G] f16 or bf16 | i32 [N/8, G] or i8 [N, G] (z − 8) |
 *
 * G = K / groupSize. Bit orders: docs/formats.md.
 *
 * @returns A tensor [N, K] of layout `panels`: of the stored dtype (on CUDA q3_k becomes q6_k and iq4_nl q8_0, the same weights), `i8`, or `i4`.
 * @throws ERR_DTYPE_UNSUPPORTED, ERR_SHAPE_MISMATCH if a tensor does not fit the format; when the stream reaches the call,
 *   ERR_INDEX_OUT_OF_RANGE if columnOrder names a column that is not there, and ERR_DATA_CORRUPT if an i8 zero point is outside −8 … 7.
 * @example
 * using stored = Tensor.map(device, 'model.gguf', { shape: [10240, 2560], dtype: 'q4_0', offset })
 * const weight = packWeights(stored)
 */
export function packWeights(weight: Tensor, options: PackWeightsOptions = {}): Tensor {
  const { format, scales, zeros, columnOrder, groupSize, scale } = options
  return packWeightsOp.one(
    [weight, scales, zeros, columnOrder],
    [choiceIndex(weightFormats, format, 'format'), groupSize, scale],
  )
}

/** Settings of {@link stackWeights}. */
export interface StackWeightsOptions {
  /**
   * `rows` (default): one matrix above the other, as for q, k and v. `gate_up`: two of equal N, interleaved so that `matmul` can
   * multiply gelu(gate) by up as it goes.
   */
  readonly interleave?: 'rows' | 'gate_up'
}

/**
 * Joins two or three packed matrices of one format and K along N, so that one `matmul` computes them all. The result, also of `gate_up`,
 * has the rows of the first, then those of the second …
 *
 * @param weights Packed [Nᵢ, K]. Every Nᵢ but the last (gate_up: both) is a multiple of 16, or of the panel height of the device's
 *   instruction set, which divides 16.
 * @throws ERR_LAYOUT_UNSUPPORTED if the formats differ, ERR_SHAPE_MISMATCH if an N does not fit.
 * @example
 * const qkv = stackWeights([packWeights(q), packWeights(k), packWeights(v)])
 * const gateUp = stackWeights([packWeights(gate), packWeights(up)], { interleave: 'gate_up' })
 */
export function stackWeights(
  weights: readonly [Tensor, Tensor] | readonly [Tensor, Tensor, Tensor],
  options: StackWeightsOptions = {},
): Tensor {
  const [a, b, c] = weights
  return stackWeightsOp.one([a, b, c], [choiceIndex(interleaves, options.interleave, 'interleave')])
}
