/**
 * qkNormRope: from the q/k/v projection to attention in one pass: QK-norm, rotary positions, KV-cache write.
 * @module
 */
import { choiceIndex, defineOp, type Op } from '../op.ts'
import type { Tensor } from '../tensor.ts'

const outputDtypes = ['same', 'f32', 'bf16'] as const

/** @internal The op behind `qkNormRope`. */
export const qkNormRopeOp: Op = defineOp('qk_norm_rope', {
  inputs: [
    'q',
    'k?',
    'v?',
    'qNorm?',
    'kNorm?',
    'positions',
    'kCache?!',
    'vCache?!',
    'slots?',
    'kScales?!',
    'vScales?!',
  ],
  attributes: ['ropeTheta', 'positionScale', 'rotaryDims', 'rotate', 'eps', 'weightBias', 'valueNorm', 'outputDtype'],
  outputs: ['q', 'k', 'v'],
})

/** Where keys and values are kept: the paged cache that `flashAttention` reads. */
export interface KvCacheTarget {
  /** f32, bf16, f16 or i8 [pages, kvHeads, pageTokens, headDim]. Written. */
  readonly kCache: Tensor
  /** Of the same dtype and shape; must not overlap kCache. Written. */
  readonly vCache: Tensor
  /** i32 [tokens]: page · pageTokens + offset, distinct; −1 keeps nothing. */
  readonly slots: Tensor
  /** f32 [pages, kvHeads, pageTokens], only with an i8 cache: element = byte · scale, scale = max|row| / 127. Written. */
  readonly kScales?: Tensor | undefined
  readonly vScales?: Tensor | undefined
}

/** Settings of {@link qkNormRope}. */
export interface QkNormRopeOptions {
  /** i32 [tokens], absolute, at least 0. */
  readonly positions: Tensor
  /** Base of the frequencies, required to rotate. Gemma 3: 10,000 in local layers, 1,000,000 in global ones. */
  readonly ropeTheta?: number
  /** Multiplies the position: 1/8 in global layers of Gemma 3 models that were extended to 128K. Default 1. */
  readonly positionScale?: number
  /**
   * How many of headDim elements rotate, half of them from each half of the row; even. Default 0: all. The frequencies
   * are those of headDim either way: 128 of 512 is the proportional RoPE of Gemma 4's global layers.
   */
  readonly rotaryDims?: number
  /** Default true. */
  readonly rotate?: boolean
  /** f32, bf16 or f16 [headDim]: weight of the RMS norm of each q head. Without it q is not normalised. */
  readonly qNorm?: Tensor | undefined
  /** The same for k. */
  readonly kNorm?: Tensor | undefined
  /** Added to norm weights: 1 for Gemma 1 to 3 (0 for their GGUF files, which have added it), 0 for 3n and 4. Default 0. */
  readonly weightBias?: number
  /** Added to the mean square, positive. Default 1e-6. */
  readonly eps?: number
  /** RMS norm of each v head, without weight (Gemma 3n and 4). Default false. */
  readonly valueNorm?: boolean
  /** Default: k and v are returned instead. */
  readonly cache?: KvCacheTarget | undefined
  /** Of the returned tensors. Default `same`: as q. */
  readonly outputDtype?: 'same' | 'f32' | 'bf16'
}

/** What {@link qkNormRope} gives. */
export interface QkNormRopeResult {
  /** [tokens, queryHeads, headDim] */
  readonly q: Tensor
  /** [tokens, kvHeads, headDim]; undefined with a cache, and without k. */
  readonly k: Tensor | undefined
  readonly v: Tensor | undefined
}

/**
 * Per head of headDim elements x at position p:
 *
 *     y = x · rsqrt(mean(x²) + eps) · (weightBias + norm)         where there is a norm; else y = x
 *     z[i]        = y[i] · cos a − y[i + half] · sin a            half = headDim / 2, i < rotaryDims / 2
 *     z[i + half] = y[i + half] · cos a + y[i] · sin a            a = p · positionScale · ropeTheta^(−2i / headDim)
 *
 * v is not rotated, and normalised only with `valueNorm`. Angles, sines and cosines are computed in double precision,
 * so that they are those of the exact angle, rounded to f32, at every position up to 2²⁰.
 *
 * q, k and v may be slices of one matmul's output; k and v may be the same tensor. They are not changed.
 *
 * Rotary embedding: Su et al. 2021 (arXiv 2104.09864), in the half-split form. QK-norm: Dehghani et al. 2023 (arXiv
 * 2302.05442), as in the Gemma 3 report (arXiv 2503.19786).
 *
 * @param q f32 or bf16 [tokens, queryHeads, headDim]; outer strides are free, headDim contiguous and at most 4096.
 * @param k [tokens, kvHeads, headDim] of q's dtype, or undefined in layers that read another layer's cache.
 * @param v Likewise; with k or not at all.
 * @returns q, and without a cache k and v. With one, keys and values go there and nowhere else.
 * @throws ERR_SHAPE_MISMATCH, ERR_DTYPE_UNSUPPORTED, ERR_LAYOUT_UNSUPPORTED, ERR_INVALID_ARGUMENT; when the stream reaches
 *   the call, ERR_INDEX_OUT_OF_RANGE for a negative position (the token's results are zeros) or a slot outside the cache
 *   (nothing is written).
 * @example
 * const heads = qkv.reshape([tokens, 8 + 4 + 4, 256])
 * const { q } = qkNormRope(heads.slice(0, 8, 1), heads.slice(8, 12, 1), heads.slice(12, 16, 1), {
 *   positions, ropeTheta: 10_000, qNorm, kNorm, weightBias: 1, cache: { kCache, vCache, slots },
 * })
 */
export function qkNormRope(
  q: Tensor,
  k: Tensor | undefined,
  v: Tensor | undefined,
  options: QkNormRopeOptions,
): QkNormRopeResult {
  const { positions, positionScale, rotaryDims, rotate, qNorm, kNorm, weightBias, eps, valueNorm, cache } = options
  // The native default is "required": a base that nothing uses need not be given.
  const ropeTheta = options.ropeTheta ?? (rotate === false ? 1 : undefined)
  const [rotated, keys, values] = qkNormRopeOp.all(
    [q, k, v, qNorm, kNorm, positions, cache?.kCache, cache?.vCache, cache?.slots, cache?.kScales, cache?.vScales],
    [
      ropeTheta,
      positionScale,
      rotaryDims,
      rotate,
      eps,
      weightBias,
      valueNorm,
      choiceIndex(outputDtypes, options.outputDtype, 'outputDtype'),
    ],
  )
  return { q: rotated as Tensor, k: keys, v: values }
}
