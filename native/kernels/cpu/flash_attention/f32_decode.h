// f32_decode.h: a few query rows of one kv head against rows of K and V, lanes along head_dim, in f32 arithmetic whatever
// their dtype. decode.h has the loop around.
//
//   scores   kKeysAtOnce keys × rows dot products at a time, summed across lanes at the end of each row
//   values   O[rows][head_dim] in L1 += weight · V row, several keys per visit of O
#pragma once
#include "kernels/cpu/flash_attention/f32_products.h"
#include "kernels/cpu/flash_attention/lanes.h"
#include "kernels/cpu/flash_attention/row_prefetch.h"

namespace lapidary {
namespace {
namespace attention {

static constexpr int kDecodeKeys = 64;
static constexpr int kKeysAtOnce = 4;                    // what store_sums takes
static constexpr int kGroupKeys = 8;                     // what a visit has at least: two of kKeysAtOnce
static constexpr int kRowsAtOnce = kLanes == 8 ? 2 : 4;  // 4 keys · 4 rows of sums in 32 registers, 4 · 2 in AVX2's 16
static_assert(kDecodeKeys <= kBlockKeys && kDecodeKeys % kLanes == 0 && kDecodeKeys % kGroupKeys == 0);

// Rows are visited two vectors at a time, and padded with zeros to that.
static constexpr int kPairLanes = 2 * kLanes;
LAPIDARY_INLINE int padded_dim(int head_dim) { return (head_dim + kPairLanes - 1) / kPairLanes * kPairLanes; }

template <DType kType>
inline constexpr int kElementBytes = kType == DType::f32  ? 4
                                     : kType == DType::i8 ? 1
                                                          : 2;

// kPairLanes elements as two vectors: bf16 as its even and its odd elements, other types in order. q and O have the same
// order.
template <DType kType>
LAPIDARY_INLINE void load_two(const unsigned char* p, F32& a, F32& b) {
  if constexpr (kType == DType::bf16) {
    load_bf16_pairs(p, a, b);
  } else {
    a = widen<kType>(p);
    b = widen<kType>(p + kLanes * kElementBytes<kType>);
  }
}
// The same of the last `rest` elements of a row, then zeros.
template <DType kType>
LAPIDARY_INLINE void load_rest(const unsigned char* p, int rest, F32& a, F32& b) {
  alignas(64) unsigned char padded[kPairLanes * kElementBytes<kType>] = {};
  memcpy(padded, p, size_t(rest) * kElementBytes<kType>);
  load_two<kType>(padded, a, b);
}

// scores[r][j] = q[r] · k[j] for `count` keys, a multiple of kGroupKeys. One key after the other, as they lie in memory:
// q comes from L1 for each.
template <DType kType, int kRows>
static void decode_scores(const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                          const float* queries, int head_dim, float* scores) {
  constexpr int kBytes = kElementBytes<kType>;
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * kBytes);
  for (int j = 0; j < count; j += kKeysAtOnce) {
    F32 sum[kKeysAtOnce][kRows];
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const unsigned char* const key = keys[j + i];
      const unsigned char* const next = prefetch.take(head_dim * kBytes);
      F32 dot[2][kRows];
      for (int r = 0; r < kRows; ++r) dot[0][r] = dot[1][r] = simd::zero();
      const auto add = [&](F32 a, F32 b, int d) {
        for (int r = 0; r < kRows; ++r) dot[0][r] = simd::fma(a, simd::load(queries + r * stride + d), dot[0][r]);
        for (int r = 0; r < kRows; ++r) {
          dot[1][r] = simd::fma(b, simd::load(queries + r * stride + d + kLanes), dot[1][r]);
        }
      };
      F32 a, b;
      int d = 0;
      for (; d + kPairLanes <= head_dim; d += kPairLanes) {
        load_two<kType>(key + d * kBytes, a, b);
        ask_for<kPairLanes * kBytes>(next, d * kBytes);
        add(a, b, d);
      }
      if (d < head_dim) {
        load_rest<kType>(key + d * kBytes, head_dim - d, a, b);
        ask_for<kPairLanes * kBytes>(next, d * kBytes);
        add(a, b, d);
      }
      for (int r = 0; r < kRows; ++r) sum[i][r] = simd::add(dot[0][r], dot[1][r]);
    }
    for (int r = 0; r < kRows; ++r)
      store_sums(scores + r * kDecodeKeys + j, sum[0][r], sum[1][r], sum[2][r], sum[3][r]);
  }
}

// Visits of a row, two vectors each, whose sums for all query rows stay in registers: half of what there are.
static constexpr int kMostVisits = kLanes == 8 ? 2 : 8;
template <int kRows>
inline constexpr int kVisits = kRows > kMostVisits ? 1 : kMostVisits / kRows;

// output[r] += Σ_j weights[r][j] · v[j] over the elements [d, d + visits · kPairLanes) of kGroupKeys rows; of one visit,
// `rest` may be less than kPairLanes.
template <DType kType, int kRows, int kVisitCount, bool kRest>
LAPIDARY_INLINE void add_values(const unsigned char* const* values, const float* weights, int d, int rest, int stride,
                                Ahead& prefetch, float* output) {
  constexpr int kVisitBytes = kPairLanes * kElementBytes<kType>;
  F32 sum[kVisitCount][2][kRows];
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      sum[c][0][r] = simd::load(output + r * stride + d + c * kPairLanes);
      sum[c][1][r] = simd::load(output + r * stride + d + c * kPairLanes + kLanes);
    }
  }
  for (int i = 0; i < kGroupKeys; ++i) {
    const unsigned char* const value = values[i] + d * kElementBytes<kType>;
    const unsigned char* const next = prefetch.take(kVisitCount * kVisitBytes);
    F32 weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = simd::set1(weights[r * kDecodeKeys + i]);
    for (int c = 0; c < kVisitCount; ++c) {
      F32 a, b;
      if constexpr (kRest) {
        load_rest<kType>(value, rest, a, b);
      } else {
        load_two<kType>(value + c * kVisitBytes, a, b);
      }
      ask_for<kVisitBytes>(next, c * kVisitBytes);
      for (int r = 0; r < kRows; ++r) sum[c][0][r] = simd::fma(weight[r], a, sum[c][0][r]);
      for (int r = 0; r < kRows; ++r) sum[c][1][r] = simd::fma(weight[r], b, sum[c][1][r]);
    }
  }
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      simd::store(output + r * stride + d + c * kPairLanes, sum[c][0][r]);
      simd::store(output + r * stride + d + c * kPairLanes + kLanes, sum[c][1][r]);
    }
  }
}

// output[r] += Σ_j weights[r][j] · v[j] for `count` keys, a multiple of kGroupKeys. Of each group a part of every row
// in turn, so that lines are read nearly in the order in which they lie and O is loaded and stored once for eight keys.
template <DType kType, int kRows>
static void decode_values(const unsigned char* const* values, const unsigned char* const* ahead, int count,
                          const float* weights, int head_dim, float* output) {
  constexpr int kPart = kVisits<kRows> * kPairLanes;
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * kElementBytes<kType>);
  for (int j = 0; j < count; j += kGroupKeys) {
    int d = 0;
    for (; d + kPart <= head_dim; d += kPart)
      add_values<kType, kRows, kVisits<kRows>, false>(values + j, weights + j, d, 0, stride, prefetch, output);
    for (; d + kPairLanes <= head_dim; d += kPairLanes)
      add_values<kType, kRows, 1, false>(values + j, weights + j, d, 0, stride, prefetch, output);
    if (d < head_dim)
      add_values<kType, kRows, 1, true>(values + j, weights + j, d, head_dim - d, stride, prefetch, output);
  }
}

// Any number of rows, kRowsAtOnce at a time; the first visit brings the cache lines that are to come, later ones ask for
// what L1 has.
template <DType kType>
static void decode_scores_of(int rows, const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                             const float* queries, int head_dim, float* scores) {
  for (int r = 0; r < rows; r += kRowsAtOnce, ahead = keys) {
    const int now = rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce;
    const auto run = now == 1   ? decode_scores<kType, 1>
                     : now == 2 ? decode_scores<kType, 2>
                     : now == 3 ? decode_scores<kType, 3>
                                : decode_scores<kType, 4>;
    run(keys, ahead, count, queries + r * padded_dim(head_dim), head_dim, scores + r * kDecodeKeys);
  }
}
template <DType kType>
static void decode_values_of(int rows, const unsigned char* const* values, const unsigned char* const* ahead, int count,
                             const float* weights, int head_dim, float* output) {
  for (int r = 0; r < rows; r += kRowsAtOnce, ahead = values) {
    const int now = rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce;
    const auto run = now == 1   ? decode_values<kType, 1>
                     : now == 2 ? decode_values<kType, 2>
                     : now == 3 ? decode_values<kType, 3>
                                : decode_values<kType, 4>;
    run(values, ahead, count, weights + r * kDecodeKeys, head_dim, output + r * padded_dim(head_dim));
  }
}

// How a piece's rows meet a block of keys, in f32 arithmetic whatever the dtype. An ISA may bring its own.
struct F32Decode {
  // Whether q and O are kept as even and odd elements.
  LAPIDARY_MEMBER_INLINE static bool in_pairs(DType key_dtype, int) { return key_dtype == DType::bf16; }

  static void place_query(const unsigned char* row, DType dtype, DType key_dtype, int, int head_dim, float* to) {
    for (int d = 0; d < head_dim; d += kPairLanes) {
      const int count = head_dim - d < kPairLanes ? head_dim - d : kPairLanes;
      if (dtype == DType::bf16 && key_dtype == DType::bf16) {
        F32 a, b;
        load_rest<DType::bf16>(row + d * 2, count, a, b);
        simd::store(to + d, a);
        simd::store(to + d + kLanes, b);
        continue;
      }
      for (int i = 0; i < kPairLanes; ++i) {
        float x = 0.f;
        if (i < count && dtype == DType::f32) memcpy(&x, row + (d + i) * 4, 4);
        if (i < count && dtype == DType::bf16) {
          uint16_t bits;
          memcpy(&bits, row + (d + i) * 2, 2);
          x = simd::bf16_to_f32(bits);
        }
        to[d + (key_dtype == DType::bf16 ? i / 2 + (i & 1) * kLanes : i)] = x;
      }
    }
  }

  LAPIDARY_MEMBER_INLINE static void scores(DType dtype, int rows, const unsigned char* const* keys,
                                            const unsigned char* const* ahead, int count, const float* queries,
                                            int head_dim, float* scores) {
    switch (dtype) {
      case DType::f32: return decode_scores_of<DType::f32>(rows, keys, ahead, count, queries, head_dim, scores);
      case DType::bf16: return decode_scores_of<DType::bf16>(rows, keys, ahead, count, queries, head_dim, scores);
      case DType::f16: return decode_scores_of<DType::f16>(rows, keys, ahead, count, queries, head_dim, scores);
      default: return decode_scores_of<DType::i8>(rows, keys, ahead, count, queries, head_dim, scores);
    }
  }
  LAPIDARY_MEMBER_INLINE static void values(DType dtype, int rows, const unsigned char* const* values,
                                            const unsigned char* const* ahead, int count, const float* weights,
                                            int head_dim, float* output) {
    switch (dtype) {
      case DType::f32: return decode_values_of<DType::f32>(rows, values, ahead, count, weights, head_dim, output);
      case DType::bf16: return decode_values_of<DType::bf16>(rows, values, ahead, count, weights, head_dim, output);
      case DType::f16: return decode_values_of<DType::f16>(rows, values, ahead, count, weights, head_dim, output);
      default: return decode_values_of<DType::i8>(rows, values, ahead, count, weights, head_dim, output);
    }
  }
};

}  // namespace attention
}  // namespace
}  // namespace lapidary
