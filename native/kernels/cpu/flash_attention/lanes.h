// lanes.h: what attention moves between lanes, beyond the vocabulary: per ISA, with plain C++ for the rest.
#pragma once
#include <cstring>

#include "core/inline.h"

namespace lapidary {
namespace {
namespace attention {

using simd::F32;
using simd::kLanes;

// rows[i] lane j  ↔  rows[j] lane i. Bits are moved, not values: lanes may hold pairs of bf16.
LAPIDARY_INLINE void transpose(F32 (&r)[kLanes]) {
#if defined(__AVX512F__)
  // Four rounds that exchange at distances 1, 2 (within 128 bits) and 4, 8 (of 128-bit quarters): 64 shuffles for 256
  // lanes.
  F32 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto low = [](F32 x, F32 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](F32 x, F32 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  for (int i = 0; i < 16; i += 4) {  // b[i + c]: column 4q + c of rows i … i + 3, in quarter q
    b[i] = low(a[i], a[i + 2]);
    b[i + 1] = high(a[i], a[i + 2]);
    b[i + 2] = low(a[i + 1], a[i + 3]);
    b[i + 3] = high(a[i + 1], a[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const F32 even_low = _mm512_shuffle_f32x4(b[c], b[c + 4], 0x88),
              odd_low = _mm512_shuffle_f32x4(b[c], b[c + 4], 0xdd);
    const F32 even_high = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0x88);
    const F32 odd_high = _mm512_shuffle_f32x4(b[c + 8], b[c + 12], 0xdd);
    r[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    r[c + 4] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    r[c + 8] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    r[c + 12] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
#elif defined(__AVX__)
  F32 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    r[c] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x20);
    r[c + 4] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x31);
  }
#elif defined(LAPIDARY_SIMD_NEON)
  const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
#else
  float from[kLanes][kLanes], to[kLanes][kLanes];
  for (int i = 0; i < kLanes; ++i) simd::store(from[i], r[i]);
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) to[i][j] = from[j][i];
  }
  for (int i = 0; i < kLanes; ++i) r[i] = simd::load(to[i]);
#endif
}

// 2 · kLanes neighbouring bf16, the even ones and the odd ones: 2 instructions where widening in order takes 4.
LAPIDARY_INLINE void load_bf16_pairs(const void* p, F32& even, F32& odd) {
#if defined(__AVX512F__)
  const __m512i pairs = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int32_t(0xffff0000))));
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int32_t(0xffff0000))));
#elif defined(LAPIDARY_SIMD_NEON)
  const uint32x4_t pairs = vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
  even = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
  odd = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
#else
  uint16_t pairs[2 * kLanes];
  float values[2][kLanes];
  memcpy(pairs, p, sizeof pairs);
  for (int i = 0; i < kLanes; ++i) {
    values[0][i] = simd::bf16_to_f32(pairs[2 * i]);
    values[1][i] = simd::bf16_to_f32(pairs[2 * i + 1]);
  }
  even = simd::load(values[0]);
  odd = simd::load(values[1]);
#endif
}

// a0 b0 a1 b1 …: the way back from even and odd, in place.
LAPIDARY_INLINE void interleave_lanes(F32& a, F32& b) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const F32 first = _mm512_permutex2var_ps(a, low, b);
  b = _mm512_permutex2var_ps(a, _mm512_add_epi32(low, _mm512_set1_epi32(8)), b);
  a = first;
#elif defined(__AVX__)
  const F32 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  a = _mm256_permute2f128_ps(low, high, 0x20);
  b = _mm256_permute2f128_ps(low, high, 0x31);
#elif defined(LAPIDARY_SIMD_NEON)
  const float32x4x2_t zipped = vzipq_f32(a, b);
  a = zipped.val[0];
  b = zipped.val[1];
#else
  float from[2][kLanes], to[2 * kLanes];
  simd::store(from[0], a);
  simd::store(from[1], b);
  for (int i = 0; i < kLanes; ++i) {
    to[2 * i] = from[0][i];
    to[2 * i + 1] = from[1][i];
  }
  a = simd::load(to);
  b = simd::load(to + kLanes);
#endif
}

// The sums across the lanes of four vectors, to four consecutive floats: about 3 instructions each where reduce_add
// takes 8.
LAPIDARY_INLINE void store_sums(float* to, F32 a, F32 b, F32 c, F32 d) {
#if defined(__AVX512F__)
  const F32 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));  // a b a b per quarter
  const F32 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const F32 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#elif defined(__AVX__)
  const F32 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const F32 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const F32 abcd = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
#elif defined(LAPIDARY_SIMD_NEON)
  vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
#else
  to[0] = simd::reduce_add(a);
  to[1] = simd::reduce_add(b);
  to[2] = simd::reduce_add(c);
  to[3] = simd::reduce_add(d);
#endif
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
