/**
 * matmul: activations times a weight matrix.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const epilogues = ['none', 'geglu', 'gelu'] as const
const outputDtypes = ['f32', 'bf16'] as const

/** @internal The op behind `matmul`. */
export const matmulOp: Op = defineOp('matmul', {
  inputs: ['x', 'weight', 'bias?', 'residual?'],
  attributes: ['epilogue', 'outputDtype'],
  outputs: ['out'],
})

/** Settings of {@link matmul}. */
export interface MatmulOptions {
  /** f32 [N], added to every row before the epilogue. */
  readonly bias?: Tensor
  /**
   * `geglu`: the weight is gate and up stacked by `stackWeights(…, { interleave: 'gate_up' })`, and the result is
   * gelu(x·gateᵀ) · (x·upᵀ) with half as many columns. `gelu`: gelu(x·Wᵀ), the tanh form. Default `none`.
   */
  readonly epilogue?: (typeof epilogues)[number]
  /** f32 of the result's shape, contiguous: added last, before the result is rounded. */
  readonly residual?: Tensor
  /** Default `f32`. */
  readonly outputDtype?: (typeof outputDtypes)[number]
}

/**
 * y = x · Wᵀ (+ bias), with an activation and a residual where asked for: residual + gelu(x · Wᵀ + bias).
 *
 * @param x f32 or bf16 [..., K]; rows may be strided.
 * @param weight W [N, K]: packed by `packWeights` (any of its formats), or an unpacked f32, f16 or bf16 matrix (slower).
 * @returns f32 or bf16 [..., N].
 *
 * Integer formats multiply in 8-bit integers: x is rounded to int8 in groups of 32 columns with one scale each; products are summed exactly
 * within a group and in f32 across groups. A row's result does not depend on the other rows. Float formats multiply and sum
 * in f32. Devices with bf16 or tile instructions may round x and the weights to bf16 where many rows make
 * that faster: native/ops/matmul.h says which.
 *
 * @throws ERR_SHAPE_MISMATCH if K differs; ERR_LAYOUT_UNSUPPORTED if the weight was packed for another device.
 * @example
 * const y = matmul(x, packWeights(stored))
 */
export function matmul(x: Tensor, weight: Tensor, options: MatmulOptions = {}): Tensor {
  const { bias, epilogue, residual, outputDtype } = options
  return matmulOp.one(
    [x, weight, bias, residual],
    [choiceIndex(epilogues, epilogue, 'epilogue'), choiceIndex(outputDtypes, outputDtype, 'outputDtype')],
  )
}
