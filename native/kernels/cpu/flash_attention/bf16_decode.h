// bf16_decode.h: decode.h's arithmetic with vdpbf16ps where keys and values are bf16: half the instructions of widening
// to f32, which matters where they are close to the time that memory takes (from 4 query rows per kv head on; half of
// it at 2).
//
//   scores   32 elements of a key · 32 of q, both as they lie
//   values   two keys' 32 elements interleaved to pairs · the pair of weights, rounded to bf16
#pragma once
#include "kernels/cpu/flash_attention/bf16_products.h"
#include "kernels/cpu/flash_attention/decode.h"

namespace lapidary {
namespace {
namespace attention {

static_assert(kPairLanes == 32 && kKeysAtOnce == 4 && kGroupKeys == 8);

template <int kRows>
static void bf16_decode_scores(const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                               const float* queries, int head_dim, float* scores) {
  const int stride = padded_dim(head_dim);
  for (int j = 0; j < count; j += kKeysAtOnce) {
    F32 sum[kKeysAtOnce][kRows];
    for (int i = 0; i < kKeysAtOnce; ++i) {
      for (int r = 0; r < kRows; ++r) sum[i][r] = simd::zero();
    }
    const auto visit = [&](int d, int n) {
      Bytes query[kRows];
      for (int r = 0; r < kRows; ++r) query[r] = simd::load_bytes(queries + r * stride + d / 2);
      for (int i = 0; i < kKeysAtOnce; ++i) {
        const Bytes key = load_as_bf16<DType::bf16>(keys[j + i], d, n);
        if (ahead) prefetch_like<2>(ahead[j + i], d);
        for (int r = 0; r < kRows; ++r) sum[i][r] = simd::dot_bf16(sum[i][r], key, query[r]);
      }
    };
    int d = 0;
    for (; d + 32 <= head_dim; d += 32) visit(d, 32);
    if (d < head_dim) visit(d, head_dim - d);
    for (int r = 0; r < kRows; ++r)
      store_sums(scores + r * kDecodeKeys + j, sum[0][r], sum[1][r], sum[2][r], sum[3][r]);
  }
}

template <int kRows>
static void bf16_decode_values(const unsigned char* const* values, const unsigned char* const* ahead, int count,
                               const float* weights, int head_dim, float* output) {
  const int stride = padded_dim(head_dim);
  for (int j = 0; j < count; j += kGroupKeys) {
    Bytes weight[kGroupKeys / 2][kRows];
    for (int r = 0; r < kRows; ++r) {
      const __m128bh eight = _mm256_cvtneps_pbh(_mm256_loadu_ps(weights + r * kDecodeKeys + j));
      int32_t pairs[kGroupKeys / 2];
      memcpy(pairs, &eight, sizeof pairs);
      for (int i = 0; i < kGroupKeys / 2; ++i) weight[i][r] = _mm512_set1_epi32(pairs[i]);
    }
    const auto visit = [&](int d, int n) {
      F32 sum[2][kRows];
      for (int r = 0; r < kRows; ++r) {
        sum[0][r] = simd::load(output + r * stride + d);
        sum[1][r] = simd::load(output + r * stride + d + kLanes);
      }
      for (int i = 0; i < kGroupKeys; i += 2) {
        const Bytes a = load_as_bf16<DType::bf16>(values[j + i], d, n),
                    b = load_as_bf16<DType::bf16>(values[j + i + 1], d, n);
        if (ahead) prefetch_like<2>(ahead[j + i], d);
        if (ahead) prefetch_like<2>(ahead[j + i + 1], d);
        const InterleavedRows pairs = interleave(a, b);
        for (int r = 0; r < kRows; ++r) sum[0][r] = simd::dot_bf16(sum[0][r], pairs.low, weight[i / 2][r]);
        for (int r = 0; r < kRows; ++r) sum[1][r] = simd::dot_bf16(sum[1][r], pairs.high, weight[i / 2][r]);
      }
      for (int r = 0; r < kRows; ++r) {
        simd::store(output + r * stride + d, sum[0][r]);
        simd::store(output + r * stride + d + kLanes, sum[1][r]);
      }
    };
    int d = 0;
    for (; d + 32 <= head_dim; d += 32) visit(d, 32);
    if (d < head_dim) visit(d, head_dim - d);
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
    for (int r = 0; r < rows; r += 4, ahead = nullptr) {
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
    for (int r = 0; r < rows; r += 4, ahead = nullptr) {
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
