/**
 * Row operations: norms, residual adds, activations, soft cap, casts, means.
 *
 * All take f32, bf16 or f16 tensors [.., n] of one to four dimensions whose last dimension is contiguous; leading ones may be strided.
 * They compute in f32, and round only what they write. No rows, or rows of no columns, give an empty result.
 * @module
 */
import type { DType } from '../dtype.ts'
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const outputDtypes = ['same', 'f32', 'bf16', 'f16'] as const
const castDtypes: readonly DType[] = ['f32', 'bf16', 'f16']

const outputChoice = (dtype: OutputOptions['outputDtype']) => choiceIndex(outputDtypes, dtype, 'outputDtype')

/** What most row ops can be told. */
export interface OutputOptions {
  /** What the result is rounded to. Default: the dtype of the first tensor. */
  readonly outputDtype?: 'f32' | 'bf16' | 'f16' | undefined
}

/** @internal The op behind `rmsNorm`. */
export const rmsNormOp: Op = defineOp('rms_norm', {
  inputs: ['x', 'weight?'],
  attributes: ['eps', 'weightBias', 'outputDtype'],
  outputs: ['out'],
})

/** Settings of {@link rmsNorm}. */
export interface RmsNormOptions extends OutputOptions {
  /** Added to the mean square. Default 1e-6. */
  readonly eps?: number | undefined
  /** Added to the weight. Default 0; 1 for checkpoints that store w − 1, as those of Gemma 1 to 3 do. */
  readonly weightBias?: number | undefined
}

/**
 * RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): x / √(mean(x²) + eps) · (weightBias + weight).
 *
 * @param x f32, bf16 or f16 [.., n]
 * @param weight f32 [n]. Without it nothing is multiplied, weightBias included.
 * @returns The shape of x.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; ERR_INVALID_ARGUMENT for a negative eps.
 * @example
 * const normed = rmsNorm(hidden, weight, { weightBias: 1, outputDtype: 'bf16' })
 */
export function rmsNorm(x: Tensor, weight?: Tensor, options: RmsNormOptions = {}): Tensor {
  const { eps, weightBias, outputDtype } = options
  return rmsNormOp.one([x, weight], [eps, weightBias, outputChoice(outputDtype)])
}

/** @internal The op behind `addRmsNorm`. */
export const addRmsNormOp: Op = defineOp('add_rms_norm', {
  inputs: ['x', 'residual', 'postWeight?', 'preWeight?'],
  attributes: ['eps', 'weightBias', 'postNorm', 'nextNorm', 'outScale', 'outputDtype'],
  outputs: ['residualOut', 'normed'],
})

/** Settings of {@link addRmsNorm}. */
export interface AddRmsNormOptions {
  /** f32 [n]: weight of the norm of x. */
  readonly postWeight?: Tensor | undefined
  /** f32 [n]: weight of the norm of the sum. */
  readonly preWeight?: Tensor | undefined
  /** Of both norms. Default 1e-6. */
  readonly eps?: number | undefined
  /** Added to both weights. Default 0; 1 for Gemma 2 and 3. */
  readonly weightBias?: number | undefined
  /** Whether x is normalised before it is added. Default true; false for models without post-norms (Gemma 1). */
  readonly postNorm?: boolean | undefined
  /** Whether `normed` is wanted. Default true; false after a model's last sub-layer, if its norm is done elsewhere. */
  readonly nextNorm?: boolean | undefined
  /** Factor of the sum. Default 1; Gemma 4's layer_scalar. */
  readonly outScale?: number | undefined
  /** dtype of `normed`. Default: that of residual. */
  readonly outputDtype?: OutputOptions['outputDtype']
}

/**
 * What stands between two sub-layers of Gemma, in one pass: the norm of a sub-layer's output, the residual add, and the norm before the
 * next sub-layer.
 *
 *     residual' = outScale · (residual + rmsNorm(x, postWeight))
 *     normed    = rmsNorm(residual', preWeight)
 *
 * `normed` is computed from residual' as rounded to its dtype, so the result is that of the three ops it stands for.
 *
 * @param x f32, bf16 or f16 [.., n]: the sub-layer's output.
 * @param residual f32, bf16 or f16, of x's shape; its dtype need not be x's.
 * @returns `residual` of the dtype of the input; `normed` unless nextNorm is false.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; ERR_INVALID_ARGUMENT for a negative eps, or a weight whose
 *   norm is switched off.
 * @example
 * const { residual, normed } = addRmsNorm(attentionOut, hidden, { postWeight, preWeight, weightBias: 1 })
 */
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  options: AddRmsNormOptions & { readonly nextNorm: false },
): { residual: Tensor; normed?: undefined }
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  options?: AddRmsNormOptions & { readonly nextNorm?: true | undefined },
): { residual: Tensor; normed: Tensor }
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  options?: AddRmsNormOptions,
): { residual: Tensor; normed?: Tensor | undefined }
export function addRmsNorm(
  x: Tensor,
  residual: Tensor,
  options: AddRmsNormOptions = {},
): { residual: Tensor; normed?: Tensor | undefined } {
  const { postWeight, preWeight, eps, weightBias, postNorm, nextNorm, outScale, outputDtype } = options
  const [sum, normed] = addRmsNormOp.all(
    [x, residual, postWeight, preWeight],
    [eps, weightBias, postNorm, nextNorm, outScale, outputChoice(outputDtype)],
  )
  return { residual: sum as Tensor, normed }
}

/** @internal The op behind `layerNorm`. */
export const layerNormOp: Op = defineOp('layer_norm', {
  inputs: ['x', 'weight?', 'bias?'],
  attributes: ['eps', 'outputDtype'],
  outputs: ['out'],
})

/** Settings of {@link layerNorm}. */
export interface LayerNormOptions extends OutputOptions {
  /** Added to the variance. Default 1e-6. */
  readonly eps?: number | undefined
}

/**
 * LayerNorm (Ba, Kiros and Hinton 2016, arXiv 1607.06450): (x − mean) / √(variance + eps) · weight + bias, with the variance of the row's
 * n elements (divided by n).
 *
 * @param x f32, bf16 or f16 [.., n]
 * @param weight f32 [n]
 * @param bias f32 [n]
 * @returns The shape of x.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; ERR_INVALID_ARGUMENT for a negative eps.
 * @example
 * const normed = layerNorm(patches, weight, bias)
 */
export function layerNorm(x: Tensor, weight?: Tensor, bias?: Tensor, options: LayerNormOptions = {}): Tensor {
  const { eps, outputDtype } = options
  return layerNormOp.one([x, weight, bias], [eps, outputChoice(outputDtype)])
}

/** @internal The op behind `gelu`. */
export const geluOp: Op = defineOp('gelu', { inputs: ['x'], attributes: ['outputDtype'], outputs: ['out'] })

/**
 * GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415): ½ · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))).
 *
 * @param x f32, bf16 or f16 [.., n]
 * @returns The shape of x.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED
 * @example
 * const activated = gelu(hidden)
 */
export function gelu(x: Tensor, options: OutputOptions = {}): Tensor {
  return geluOp.one([x], [outputChoice(options.outputDtype)])
}

/** @internal The op behind `geglu`. */
export const gegluOp: Op = defineOp('geglu', {
  inputs: ['gate', 'up?'],
  attributes: ['outputDtype'],
  outputs: ['out'],
})

/**
 * GeGLU (Shazeer 2020, arXiv 2002.05202): gelu(gate) · up, with the tanh form of GELU.
 *
 * @param gate f32, bf16 or f16 [.., n]; without `up` [.., 2n], the gate in the first n columns and up in the last.
 * @param up The shape and dtype of gate.
 * @returns [.., n]
 * @throws ERR_SHAPE_MISMATCH, also for an odd number of columns without `up`; ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED
 * @example
 * const activated = geglu(matmul(hidden, gateUpWeights))
 */
export function geglu(gate: Tensor, up?: Tensor, options: OutputOptions = {}): Tensor {
  return gegluOp.one([gate, up], [outputChoice(options.outputDtype)])
}

/** @internal The op behind `add`. */
export const addOp: Op = defineOp('add', { inputs: ['a', 'b'], attributes: ['outputDtype'], outputs: ['out'] })

/**
 * a + b.
 *
 * @param a f32, bf16 or f16 [.., n]
 * @param b The shape of a, or one row [n] that is added to every row of a. Its dtype is a's, or f32.
 * @returns The shape of a.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED
 * @example
 * const embedded = add(patches, positions)
 */
export function add(a: Tensor, b: Tensor, options: OutputOptions = {}): Tensor {
  return addOp.one([a, b], [outputChoice(options.outputDtype)])
}

/** @internal The op behind `softcap`. */
export const softcapOp: Op = defineOp('softcap', {
  inputs: ['x'],
  attributes: ['cap', 'outputDtype'],
  outputs: ['out'],
})

/**
 * Soft cap (Gemma 2 report, arXiv 2408.00118, §2): cap · tanh(x / cap).
 *
 * @param x f32, bf16 or f16 [.., n]: logits.
 * @param cap Above 0; Gemma 2 takes 30 for its output, 50 for attention.
 * @returns The shape of x, all elements within −cap … cap.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; ERR_INVALID_ARGUMENT for a cap that is not above 0.
 * @example
 * const logits = softcap(matmul(hidden, embeddingTable), 30)
 */
export function softcap(x: Tensor, cap: number, options: OutputOptions = {}): Tensor {
  return softcapOp.one([x], [cap, outputChoice(options.outputDtype)])
}

/** @internal The op behind `cast`. */
export const castOp: Op = defineOp('cast', { inputs: ['x'], attributes: ['dtype'], outputs: ['out'] })

/**
 * x rounded to another dtype: to nearest, ties to even, overflow to infinity. Also makes a strided tensor contiguous.
 *
 * @param x f32, bf16 or f16 [.., n]
 * @param dtype f32, bf16 or f16
 * @returns The shape of x.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; ERR_INVALID_ARGUMENT for another dtype.
 * @example
 * const half = cast(hidden, 'bf16')
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  return castOp.one([x], [choiceIndex(castDtypes, dtype, 'cast: dtype')])
}

/** @internal The op behind `meanRows`. */
export const meanRowsOp: Op = defineOp('mean_rows', { inputs: ['x', 'starts'], attributes: [], outputs: ['out'] })

/**
 * The mean of each sequence's rows: mean pooling of sentence embeddings.
 *
 * @param x f32, bf16 or f16 [tokens, n]
 * @param starts i32 [sequences + 1]: sequence s owns the rows from starts[s] to starts[s + 1], which may be none: then zeros.
 * @returns f32 [sequences, n]
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; when the stream reaches the call,
 *   ERR_INDEX_OUT_OF_RANGE for starts that decrease or lie outside x: such a sequence's mean is zeros.
 * @example
 * const pooled = meanRows(hidden, Tensor.from(device, Int32Array.of(0, 12, 30)))
 */
export function meanRows(x: Tensor, starts: Tensor): Tensor {
  return meanRowsOp.one([x, starts], [])
}

/** @internal The op behind `gatherColumns`. */
export const gatherColumnsOp: Op = defineOp('gather_columns', {
  inputs: ['x', 'order'],
  attributes: [],
  outputs: ['out'],
})

/**
 * Columns of x in another order, bit for bit: out[.., j] = x[.., order[j]].
 *
 * @param x f32, bf16 or f16 [.., n]
 * @param order i32 [m]
 * @returns x's dtype, [.., m]
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED; when the stream reaches the call, ERR_INDEX_OUT_OF_RANGE for
 *   an entry outside 0 … n − 1: its column is zeros.
 * @example
 * const weight = packWeights(qweight, { format: 'gptq', scales, columnOrder })
 * const y = matmul(gatherColumns(x, columnOrder), weight)
 */
export function gatherColumns(x: Tensor, order: Tensor): Tensor {
  return gatherColumnsOp.one([x, order], [])
}
