// online_softmax.h: softmax over blocks of keys with one pass over the scores' row sums (M. Milakov, N. Gimelshein,
// Online normalizer calculation for softmax, 2018, arXiv 1805.02867), rows in lanes:
//
//   weights  w = e^(x − m)        x the exponent of a score, m the row's reference
//   sum      l = Σ w              output  O = Σ w · v        result  O / l
//
// The reference is lazy: any m gives the same quotient as long as nothing overflows, so it moves only when a block's
// largest exponent passes it by more than kSlack; l and O are then multiplied by e^(m − m'), as FlashAttention-4 does
// (T. Dao, Hot Chips 2025). Where a soft cap bounds the exponents the reference stays 0 and no maximum is looked for.
#pragma once
#include "core/inline.h"

namespace lapidary {
namespace {
namespace attention {

using simd::F32;
using simd::I32;
using simd::kLanes;

// Weights stay below 2⁸ or e⁸, sums of a million keys below 2³²: far from overflow, and no rounding is worse than at 1.
static constexpr float kSlack = 8.f;
// The reference before any key: e^(kNoReference − m) is 0 for every m, and nothing here is infinity minus infinity.
static constexpr float kNoReference = -1e38f;
static constexpr float kMinusInfinity = -__builtin_inff();

// Soft caps up to here need no reference: exponents within ±60 · log2 e keep weights in 2^±87, sums of 2³⁰ keys below
// 2¹¹⁷.
static constexpr float kLargestBound = 60.f;

// How a scaled product becomes an exponent: s · factor, or where capped s := cap · tanh(s · cap_factor) first (then
// factor is 1).
struct Exponents {
  float factor;  // ≥ 0
  float cap_factor, cap;
  bool capped, bounded, negated;
};

template <class Products>
LAPIDARY_INLINE Exponents exponents_of(float scale, float softcap) {
  Exponents e;
  e.capped = softcap > 0;
  e.bounded = e.capped && softcap <= kLargestBound;
  e.negated = !e.capped && scale < 0;  // tanh carries the sign itself
  e.factor = e.capped ? 1.f : (scale < 0 ? -scale : scale) * Products::kUnit;
  e.cap_factor = e.capped ? scale / softcap : 0.f;
  e.cap = softcap * Products::kUnit;
  return e;
}

// A block of scores [keys][kVectors · kLanes rows], row-wise state, and what happened to it.
template <int kVectors>
struct ScoreBlock {
  float* scores;
  int keys;
  static constexpr int kStride = kVectors * kLanes;
};

// Applies what cannot wait for the exponent: scales of i8 keys, the sign of a negative scale, the soft cap.
template <class Products, int kVectors>
static void transform_scores(ScoreBlock<kVectors> block, const Exponents& e, const float* key_scales) {
  if (!e.capped && !e.negated && !key_scales) return;
  for (int j = 0; j < block.keys; ++j) {
    float* row = block.scores + int64_t(j) * block.kStride;
    const float by_key = (key_scales ? key_scales[j] : 1.f) * (e.negated ? -1.f : 1.f);
    const F32 factor = simd::set1(e.capped ? by_key * e.cap_factor : by_key);
    for (int v = 0; v < kVectors; ++v) {
      F32 s = simd::mul(simd::load(row + v * kLanes), factor);
      if (e.capped) s = simd::mul(Products::tanh(s), simd::set1(e.cap));
      simd::store(row + v * kLanes, s);
    }
  }
}

// Scores outside a row's interval become −∞. `inner` holds the keys that every row sees: they are left alone.
template <int kVectors>
static void mask_scores(ScoreBlock<kVectors> block, int first_key, int inner_begin, int inner_end,
                        const int32_t* before_low, const int32_t* high) {
  const F32 minus_infinity = simd::set1(kMinusInfinity);
  for (int j = 0; j < block.keys; ++j) {
    const int key = first_key + j;
    if (key >= inner_begin && key < inner_end) {
      j += (inner_end - key) - 1;
      continue;
    }
    const I32 index = simd::set1_i32(key);
    float* row = block.scores + int64_t(j) * block.kStride;
    for (int v = 0; v < kVectors; ++v) {
      const auto seen = simd::mask_and(simd::less(simd::load_i32(before_low + v * kLanes), index),
                                       simd::less(index, simd::load_i32(high + v * kLanes)));
      simd::store(row + v * kLanes, simd::select(seen, simd::load(row + v * kLanes), minus_infinity));
    }
  }
}

// Moves references up where the block asks for it. True where any moved: then `factors` are what O has to be multiplied
// by (sums already are).
template <class Products, int kVectors>
static bool move_references(ScoreBlock<kVectors> block, const Exponents& e, float* references, float* sums,
                            float* factors) {
  if (e.bounded) return false;
  F32 largest[kVectors];
  for (int v = 0; v < kVectors; ++v) largest[v] = simd::set1(kMinusInfinity);
  for (int j = 0; j < block.keys; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      largest[v] = simd::max(simd::load(block.scores + int64_t(j) * block.kStride + v * kLanes), largest[v]);
    }
  }
  bool moved = false;
  for (int v = 0; v < kVectors; ++v) {
    const F32 exponent = simd::mul(largest[v], simd::set1(e.factor));
    const F32 reference = simd::load(references + v * kLanes);
    const auto beyond = simd::less(simd::add(reference, simd::set1(kSlack)), exponent);
    const F32 moved_reference = simd::select(beyond, exponent, reference);
    const F32 factor = Products::exponential(simd::sub(reference, moved_reference));
    moved |= simd::any(beyond);
    simd::store(references + v * kLanes, moved_reference);
    simd::store(factors + v * kLanes, factor);
    simd::store(sums + v * kLanes, simd::mul(simd::load(sums + v * kLanes), factor));
  }
  return moved;
}

// Scores to weights, in place (a step of weights never lies behind the scores it is made of), and their sums.
template <class Products, int kVectors>
static void weigh(ScoreBlock<kVectors> block, const Exponents& e, const float* value_scales, const float* references,
                  float* sums) {
  constexpr int kPerStep = Products::kPerStep;
  const F32 factor = simd::set1(e.factor);
  F32 minus_reference[kVectors], sum[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    minus_reference[v] = simd::sub(simd::zero(), simd::load(references + v * kLanes));
    sum[v] = simd::zero();
  }
  for (int j = 0; j < block.keys; j += kPerStep) {
    const float* scores = block.scores + int64_t(j) * block.kStride;
    float* step = block.scores + int64_t(j / kPerStep) * block.kStride;
    for (int v = 0; v < kVectors; ++v) {
      F32 weights[kPerStep];
      for (int i = 0; i < kPerStep; ++i) {
        weights[i] = simd::zero();
        if (j + i >= block.keys) continue;
        const F32 s = simd::load(scores + i * block.kStride + v * kLanes);
        weights[i] = Products::exponential(simd::fma(s, factor, minus_reference[v]));
        sum[v] = simd::add(sum[v], weights[i]);
        if (value_scales) weights[i] = simd::mul(weights[i], simd::set1(value_scales[j + i]));
      }
      Products::store_weights(step + v * kLanes, weights);
    }
  }
  for (int v = 0; v < kVectors; ++v) simd::store(sums + v * kLanes, simd::add(simd::load(sums + v * kLanes), sum[v]));
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
