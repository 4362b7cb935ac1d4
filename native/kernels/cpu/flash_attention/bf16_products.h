// bf16_products.h: how prefill multiplies with vdpbf16ps: a step covers two neighbours, two elements of head_dim for
// scores and two keys for values. Twice the products per instruction of an fma where the instruction runs at full rate
// (AMD Zen 4 and 5).
//
// K needs no conversion: a row's elements already lie in pairs. Two rows of V are interleaved, once per block of up to
// 96 query rows:
//   row j    a0 a1 a2 …   ┐
//   row j+1  b0 b1 b2 …   ┘→  a0 b0 a1 b1 a2 b2 …            2 loads, 2 permutations, 2 stores for 32 elements of each
// An odd last row is paired with zeros. i8 rows become bf16, which holds every byte exactly.
#pragma once
#include "kernels/cpu/flash_attention/f32_products.h"

namespace lapidary {
namespace {
namespace attention {

using simd::Bytes;

// 32 elements of a row, or the first n, as bf16.
template <DType kType>
LAPIDARY_INLINE Bytes load_as_bf16(const unsigned char* row, int element, int n) {
  static_assert(kType == DType::bf16 || kType == DType::i8);
  const __mmask32 first = n >= 32 ? 0xffffffffu : (1u << n) - 1;
  if constexpr (kType == DType::bf16) return _mm512_maskz_loadu_epi16(first, row + element * 2);
  const __m256i bytes = _mm256_maskz_loadu_epi8(first, row + element);
  const F32 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const F32 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  return simd::pack_bf16(high, low);
}

struct InterleavedRows {
  Bytes low, high;  // pairs of elements 0 … 15 and 16 … 31
};
LAPIDARY_INLINE InterleavedRows interleave(Bytes a, Bytes b) {
  const Bytes low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,  //
                                     39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const Bytes high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  return {_mm512_permutex2var_epi16(a, low, b), _mm512_permutex2var_epi16(a, high, b)};
}

template <DType kType>
static void convert_rows(const unsigned char* const* from, int rows, int head_dim, float* to, int stride) {
  for (int i = 0; i < rows; ++i) {
    float* steps = to + int64_t(i) * stride;
    for (int d = 0; d < head_dim; d += 32)
      simd::store_bytes(steps + d / 2, load_as_bf16<kType>(from[i], d, head_dim - d));
  }
}

template <DType kType>
static void interleave_rows(const unsigned char* const* from, int rows, int head_dim, float* to, int stride) {
  for (int j = 0; j < rows; j += 2) {
    float* steps = to + int64_t(j / 2) * stride;
    for (int d = 0; d < head_dim; d += 32) {
      const int n = head_dim - d;
      const Bytes a = load_as_bf16<kType>(from[j], d, n);
      const Bytes b = j + 1 < rows ? load_as_bf16<kType>(from[j + 1], d, n) : _mm512_setzero_si512();
      const InterleavedRows pairs = interleave(a, b);
      simd::store_bytes(steps + d, pairs.low);
      if (n > 16)
        simd::store_bytes(steps + d + 16,
                          pairs.high);  // head_dim mod 32 is 8, 16 or 24: the row's padding takes the rest
    }
  }
}

struct Bf16Products {
  static constexpr int kPerStep = 2;
  static constexpr float kUnit = 0x1.715476p0f;  // log2 e
  using Vector = Bytes;

  LAPIDARY_MEMBER_INLINE static F32 exponential(F32 x) { return simd::exp2_fast(x); }
  LAPIDARY_MEMBER_INLINE static F32 tanh(F32 x) { return simd::tanh_fast(x); }
  LAPIDARY_MEMBER_INLINE static Vector broadcast(const float* p) { return simd::broadcast4(p); }
  LAPIDARY_MEMBER_INLINE static Vector load(const float* p) { return simd::load_bytes(p); }
  LAPIDARY_MEMBER_INLINE static F32 multiply_add(F32 acc, Vector a, Vector b) { return simd::dot_bf16(acc, a, b); }

  LAPIDARY_MEMBER_INLINE static void place_query(const unsigned char* row, DType dtype, int head_dim, float* steps) {
    if (dtype == DType::bf16) {
      memcpy(steps, row, size_t(head_dim) * 2);
      return;
    }
    for (int d = 0; d < head_dim; d += 8) {  // head_dim is a multiple of 8
      const __m256 eight = _mm256_loadu_ps(reinterpret_cast<const float*>(row) + d);
      const __m128bh packed = _mm256_cvtneps_pbh(eight);
      memcpy(steps + d / 2, &packed, 16);
    }
  }

  static void place_keys(const KeyRows& rows, DType dtype, int count, int head_dim, float* buffer,
                         const float** steps) {
    if (dtype == DType::bf16) {
      for (int i = 0; i < count; ++i) steps[i] = reinterpret_cast<const float*>(rows.keys[i]);
      return;
    }
    const int stride = head_dim / 2 + 16;
    convert_rows<DType::i8>(rows.keys, count, head_dim, buffer, stride);
    for (int i = 0; i < count; ++i) steps[i] = buffer + int64_t(i) * stride;
  }

  static void place_values(const KeyRows& rows, DType dtype, int count, int head_dim, float* buffer,
                           const float** steps) {
    const int stride = F32Products::buffer_stride(head_dim);
    if (dtype == DType::bf16) {
      interleave_rows<DType::bf16>(rows.values, count, head_dim, buffer, stride);
    } else {
      interleave_rows<DType::i8>(rows.values, count, head_dim, buffer, stride);
    }
    for (int j = 0; j < (count + 1) / 2; ++j) steps[j] = buffer + int64_t(j) * stride;
  }

  LAPIDARY_MEMBER_INLINE static void store_weights(float* step, const F32 (&weights)[kPerStep]) {
    const Bytes order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    simd::store_bytes(step, _mm512_permutexvar_epi16(order, simd::pack_bf16(weights[1], weights[0])));
  }
};

}  // namespace attention
}  // namespace
}  // namespace lapidary
