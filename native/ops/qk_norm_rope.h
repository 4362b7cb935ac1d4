// qk_norm_rope.h: contract of qk_norm_rope: everything between the fused q/k/v projection and attention, in one pass.
//
// For every token t with position p and every head of q and k, with x the head's row of headDim numbers:
//
//   y = x · rsqrt(mean(x²) + eps) · (weightBias + w)          where the norm weight is given; else y = x
//   z[i]        = y[i] · cos a − y[i + half] · sin a          half = headDim / 2, pairs i < rotaryDims / 2,
//   z[i + half] = y[i + half] · cos a + y[i] · sin a          a = p · positionScale · ropeTheta^(−2i / headDim)
//   z[j]        = y[j]                                        for all other elements, or all without `rotate`
//
// and for every head of v: z = x · rsqrt(mean(x²) + eps) where valueNorm; else z = x.
//
//   q                f32|bf16 [tokens, queryHeads, headDim]
//   k, v             q's dtype [tokens, kvHeads, headDim]. Both or neither: layers that share the cache of another
//                    layer have q only
//   qNorm, kNorm     f32|bf16|f16 [headDim], the weights w. Absent: not normalised. kNorm only with k
//   positions        i32 [tokens], ≥ 0. Not read without rotation
//   kCache, vCache   f32|bf16|f16|i8 [pages, kvHeads, pageTokens, headDim], one dtype and shape; both or neither;
//                    mutated
//   slots            i32 [tokens], with a cache: page · pageTokens + offset of the row to write; −1: not kept
//   kScales, vScales f32 [pages, kvHeads, pageTokens], with an i8 cache: element = byte · scale; mutated
//
//   outputs          q [tokens, queryHeads, headDim] of outputDtype. Without a cache also k and v, of the same dtype;
//                    with one their results are in the cache alone
//
// q, k, v, the caches and the scales may be views with free outer strides (slices of one matmul output, layers of one
// cache), their last dimension contiguous. k and v may be the same tensor (layers whose values are the raw keys).
// Outputs are fresh. kCache and vCache must not overlap, and no two tokens of a call may name the same slot.
//
// headDim is at most 4096, and even where rows are rotated. The denominator of the exponent is headDim also where
// rotaryDims is smaller. That is the proportional form of Gemma 4: rotaryDims 128 of 512 rotates the elements 0 … 63
// and 256 … 319.
//
// Accuracy. Angles, sines and cosines are computed in double precision and rounded to f32 once: each is within
// 2⁻²⁵ + 2⁻²⁷ of the exact one while p · positionScale ≤ 2²⁰, whatever the frequency. Norm and rotation are f32. An i8
// row has scale max|z| / 127 and bytes z / scale, rounded to nearest even. A row whose largest magnitude is below 2⁻¹⁰⁰
// gets scale 0 and bytes 0; a row with a NaN or infinite element gets scale NaN and bytes 0.
//
// Bad device data is ERR_INDEX_OUT_OF_RANGE: a token with a negative position has outputs 0 and writes nothing, a token
// with a slot outside the cache (and not −1) writes nothing. No tokens: nothing happens.
#pragma once
#include "ops/call.h"

namespace lapidary {

static constexpr int64_t kRopeMaxHeadDim = 4096;  // bounds the tables of a thread

struct QkNormRopeInput {
  enum Index { q, k, v, q_norm, k_norm, positions, k_cache, v_cache, slots, k_scales, v_scales, kCount };
};

struct QkNormRopeParams {
  double frequency_step;    // ropeTheta^(−2 / headDim): frequency of pair i over that of pair i − 1
  double frequency_stride;  // ropeTheta^(−32 / headDim): the same over 16 pairs
  double position_scale;
  int32_t rotated_pairs;  // 0: no rotation
  float eps;
  float weight_bias;
  bool value_norm;
};

}  // namespace lapidary
