// bf16_decode.h: f32_decode.h's arithmetic with vdpbf16ps where keys and values are bf16: half the instructions of widening
// to f32, which matters where they are close to the time that memory takes (from 4 query rows per kv head on; half of
// it at 2).
//
//   scores   32 elements of a key · 32 of q, both as they lie
//   values   two keys' 32 elements interleaved to pairs · the pair of weights, rounded to bf16
#pragma once
#include "kernels/cpu/flash_attention/bf16_products.h"
#include "kernels/cpu/flash_attention/f32_decode.h"

namespace lapidary {
namespace {
namespace attention {

static_assert(kPairLanes == 32 && kKeysAtOnce == 4 && kGroupKeys == 8);

template <int kRows>
static void bf16_decode_scores(const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                               const float* queries, int head_dim, float* scores) {
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * 2);
  for (int j = 0; j < count; j += kKeysAtOnce) {
    F32 sum[kKeysAtOnce][kRows];
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const unsigned char* const key = keys[j + i];
      const unsigned char* const next = prefetch.take(head_dim * 2);
      F32 dot[kRows];
      for (int r = 0; r < kRows; ++r) dot[r] = simd::zero();
      const auto add = [&](Bytes elements, int d) {
        ask_for<64>(next, d * 2);
        for (int r = 0; r < kRows; ++r) {
          dot[r] = simd::dot_bf16(dot[r], elements, simd::load_bytes(queries + r * stride + d / 2));
        }
      };
      int d = 0;
      for (; d + 32 <= head_dim; d += 32) add(simd::load_bytes(key + d * 2), d);
      if (d < head_dim) add(load_as_bf16<DType::bf16>(key, d, head_dim - d), d);
      for (int r = 0; r < kRows; ++r) sum[i][r] = dot[r];
    }
    for (int r = 0; r < kRows; ++r)
      store_sums(scores + r * kDecodeKeys + j, sum[0][r], sum[1][r], sum[2][r], sum[3][r]);
  }
}

// output[r] += Σ_j weights[r][j] · v[j] over the elements [d, d + visits · 32) of kGroupKeys rows; of one visit, `rest`
// may be less than 32.
template <int kRows, int kVisitCount, bool kRest>
LAPIDARY_INLINE void bf16_add_values(const unsigned char* const* values, const int32_t (*pairs)[kGroupKeys / 2], int d,
                                     int rest, int stride, Ahead& prefetch, float* output) {
  F32 sum[kVisitCount][2][kRows];
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      sum[c][0][r] = simd::load(output + r * stride + d + c * 32);
      sum[c][1][r] = simd::load(output + r * stride + d + c * 32 + kLanes);
    }
  }
  const auto load = [&](const unsigned char* row, int c) {
    if constexpr (kRest) return load_as_bf16<DType::bf16>(row, d, rest);
    return simd::load_bytes(row + (d + c * 32) * 2);
  };
  for (int i = 0; i < kGroupKeys; i += 2) {
    const unsigned char* const next[2] = {prefetch.take(kVisitCount * 64), prefetch.take(kVisitCount * 64)};
    Bytes weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = _mm512_set1_epi32(pairs[r][i / 2]);
    for (int c = 0; c < kVisitCount; ++c) {
      // The first half of the visits asks for what `next` begins with.
      ask_for<64>(next[2 * c / kVisitCount], 2 * c % kVisitCount * 64);
      ask_for<64>(next[(2 * c + 1) / kVisitCount], (2 * c + 1) % kVisitCount * 64);
      const InterleavedRows two = interleave(load(values[i], c), load(values[i + 1], c));
      for (int r = 0; r < kRows; ++r) sum[c][0][r] = simd::dot_bf16(sum[c][0][r], two.low, weight[r]);
      for (int r = 0; r < kRows; ++r) sum[c][1][r] = simd::dot_bf16(sum[c][1][r], two.high, weight[r]);
    }
  }
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      simd::store(output + r * stride + d + c * 32, sum[c][0][r]);
      simd::store(output + r * stride + d + c * 32 + kLanes, sum[c][1][r]);
    }
  }
}

template <int kRows>
static void bf16_decode_values(const unsigned char* const* values, const unsigned char* const* ahead, int count,
                               const float* weights, int head_dim, float* output) {
  constexpr int kPart = kVisits<kRows> * 32;
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * 2);
  for (int j = 0; j < count; j += kGroupKeys) {
    int32_t pairs[kRows][kGroupKeys / 2];
    for (int r = 0; r < kRows; ++r) {
      const __m128bh eight = _mm256_cvtneps_pbh(_mm256_loadu_ps(weights + r * kDecodeKeys + j));
      memcpy(pairs[r], &eight, sizeof pairs[r]);
    }
    int d = 0;
    for (; d + kPart <= head_dim; d += kPart)
      bf16_add_values<kRows, kVisits<kRows>, false>(values + j, pairs, d, 0, stride, prefetch, output);
    for (; d + 32 <= head_dim; d += 32)
      bf16_add_values<kRows, 1, false>(values + j, pairs, d, 0, stride, prefetch, output);
    if (d < head_dim) bf16_add_values<kRows, 1, true>(values + j, pairs, d, head_dim - d, stride, prefetch, output);
  }
}

struct Bf16Decode {
  LAPIDARY_MEMBER_INLINE static bool in_pairs(DType, int) { return false; }

  static void place_query(const unsigned char* row, DType dtype, DType key_dtype, int rows, int head_dim, float* to) {
    if (key_dtype != DType::bf16) return F32Decode::place_query(row, dtype, key_dtype, rows, head_dim, to);
    memset(to, 0, size_t(padded_dim(head_dim)) * 2);
    Bf16Products::place_query(row, dtype, head_dim, to);
  }

  static void scores(DType dtype, int rows, const unsigned char* const* keys, const unsigned char* const* ahead,
                     int count, const float* queries, int head_dim, float* scores) {
    if (dtype != DType::bf16) return F32Decode::scores(dtype, rows, keys, ahead, count, queries, head_dim, scores);
    for (int r = 0; r < rows; r += 4, ahead = keys) {
      const int now = rows - r < 4 ? rows - r : 4;
      const auto run = now == 1   ? bf16_decode_scores<1>
                       : now == 2 ? bf16_decode_scores<2>
                       : now == 3 ? bf16_decode_scores<3>
                                  : bf16_decode_scores<4>;
      run(keys, ahead, count, queries + r * padded_dim(head_dim), head_dim, scores + r * kDecodeKeys);
    }
  }

  static void values(DType dtype, int rows, const unsigned char* const* values, const unsigned char* const* ahead,
                     int count, const float* weights, int head_dim, float* output) {
    if (dtype != DType::bf16) return F32Decode::values(dtype, rows, values, ahead, count, weights, head_dim, output);
    for (int r = 0; r < rows; r += 4, ahead = values) {
      const int now = rows - r < 4 ? rows - r : 4;
      const auto run = now == 1   ? bf16_decode_values<1>
                       : now == 2 ? bf16_decode_values<2>
                       : now == 3 ? bf16_decode_values<3>
                                  : bf16_decode_values<4>;
      run(values, ahead, count, weights + r * kDecodeKeys, head_dim, output + r * padded_dim(head_dim));
    }
  }
};

}  // namespace attention
}  // namespace
}  // namespace lapidary
