// simd/avx2.h: the SIMD vocabulary (simd/scalar.h defines it) in AVX2, FMA and F16C: 8 lanes.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/inline.h"
#include "kernels/cpu/simd/single_numbers.h"

namespace lapidary {
namespace {
namespace simd {

static constexpr int kLanes = 8;
using F32 = __m256;
using I32 = __m256i;
struct Mask {
  __m256 bits;
};  // all ones or all zeros in each lane
using Bytes = __m256i;

LAPIDARY_INLINE __m256i first_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// ── F32: memory ───────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 zero() { return _mm256_setzero_ps(); }
LAPIDARY_INLINE F32 set1(float x) { return _mm256_set1_ps(x); }
LAPIDARY_INLINE F32 load(const float* p) { return _mm256_loadu_ps(p); }
LAPIDARY_INLINE F32 load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_mask(n)); }
LAPIDARY_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a); }
LAPIDARY_INLINE void store_first(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_mask(n), a); }

LAPIDARY_INLINE F32 widen_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
LAPIDARY_INLINE __m128i narrow_bf16(F32 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
LAPIDARY_INLINE __m128i narrow_f16(F32 a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The first n 16-bit elements; AVX2 has no masked move of that size.
LAPIDARY_INLINE __m128i load16_first(const uint16_t* p, int n) {
  uint16_t elements[8] = {};
  for (int i = 0; i < n; ++i) elements[i] = p[i];
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(elements));
}
LAPIDARY_INLINE void store16_first(uint16_t* p, __m128i a, int n) {
  uint16_t elements[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(elements), a);
  for (int i = 0; i < n; ++i) p[i] = elements[i];
}
LAPIDARY_INLINE F32 load_bf16(const uint16_t* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LAPIDARY_INLINE F32 load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LAPIDARY_INLINE F32 load_bf16_first(const uint16_t* p, int n) { return widen_bf16(load16_first(p, n)); }
LAPIDARY_INLINE F32 load_f16_first(const uint16_t* p, int n) { return _mm256_cvtph_ps(load16_first(p, n)); }
LAPIDARY_INLINE void store_bf16(uint16_t* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(a)); }
LAPIDARY_INLINE void store_f16(uint16_t* p, F32 a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f16(a)); }
LAPIDARY_INLINE void store_bf16_first(uint16_t* p, F32 a, int n) { store16_first(p, narrow_bf16(a), n); }
LAPIDARY_INLINE void store_f16_first(uint16_t* p, F32 a, int n) { store16_first(p, narrow_f16(a), n); }
LAPIDARY_INLINE F32 load_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// ── F32: arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
LAPIDARY_INLINE F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
LAPIDARY_INLINE F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
LAPIDARY_INLINE F32 div(F32 a, F32 b) { return _mm256_div_ps(a, b); }
LAPIDARY_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
LAPIDARY_INLINE F32 fnma(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a, b, c); }
LAPIDARY_INLINE F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
LAPIDARY_INLINE F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
LAPIDARY_INLINE F32 abs(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
LAPIDARY_INLINE F32 copy_sign(F32 magnitude, F32 sign) {
  const F32 bit = _mm256_set1_ps(-0.f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
LAPIDARY_INLINE F32 sqrt(F32 a) { return _mm256_sqrt_ps(a); }
LAPIDARY_INLINE F32 round(F32 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2ⁿ may leave the exponent range of a float where a · 2ⁿ does not, so it is applied as two factors. Only the second
// product rounds: the first is normal, or the result is 0.
LAPIDARY_INLINE F32 scale_exp2(F32 a, F32 n) {
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i rest = _mm256_sub_epi32(exponent, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const F32 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const F32 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
LAPIDARY_INLINE F32 scale_exp2_normal(F32 a, F32 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
LAPIDARY_INLINE float reduce_add(F32 a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LAPIDARY_INLINE float reduce_max(F32 a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Mask less(F32 a, F32 b) { return {_mm256_cmp_ps(a, b, _CMP_LT_OQ)}; }
LAPIDARY_INLINE Mask less_equal(F32 a, F32 b) { return {_mm256_cmp_ps(a, b, _CMP_LE_OQ)}; }
LAPIDARY_INLINE Mask less(I32 a, I32 b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a))}; }
LAPIDARY_INLINE Mask mask_and(Mask a, Mask b) { return {_mm256_and_ps(a.bits, b.bits)}; }
LAPIDARY_INLINE F32 select(Mask m, F32 yes, F32 no) { return _mm256_blendv_ps(no, yes, m.bits); }
LAPIDARY_INLINE bool any(Mask m) { return _mm256_movemask_ps(m.bits) != 0; }

// ── I32 ───────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE I32 zero_i32() { return _mm256_setzero_si256(); }
LAPIDARY_INLINE I32 set1_i32(int32_t x) { return _mm256_set1_epi32(x); }
LAPIDARY_INLINE I32 load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
LAPIDARY_INLINE void store_i32(int32_t* p, I32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
LAPIDARY_INLINE I32 iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
LAPIDARY_INLINE I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
LAPIDARY_INLINE I32 sub(I32 a, I32 b) { return _mm256_sub_epi32(a, b); }
LAPIDARY_INLINE I32 mul(I32 a, I32 b) { return _mm256_mullo_epi32(a, b); }
LAPIDARY_INLINE F32 to_f32(I32 a) { return _mm256_cvtepi32_ps(a); }
LAPIDARY_INLINE I32 to_i32(F32 a) { return _mm256_cvtps_epi32(a); }
LAPIDARY_INLINE void store_i8(int8_t* p, I32 a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
LAPIDARY_INLINE I32 load_u8_i32(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
LAPIDARY_INLINE I32 load_i8_i32(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// ── Bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Bytes load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
// The same for a value with several uses: compilers would make it a memory operand of each.
LAPIDARY_INLINE Bytes load_bytes_once(const void* p) {
  Bytes a = load_bytes(p);
  asm("" : "+x"(a));
  return a;
}
LAPIDARY_INLINE void store_bytes(void* p, Bytes a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
LAPIDARY_INLINE Bytes low_nibbles(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
LAPIDARY_INLINE Bytes high_nibbles(Bytes a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
LAPIDARY_INLINE Bytes or_bytes(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
LAPIDARY_INLINE Bytes look_up(Bytes numbers, const uint8_t (&table)[16]) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), numbers);
}
LAPIDARY_INLINE Bytes bits_to_bytes(const void* p, uint8_t value) {
  int32_t bits;
  memcpy(&bits, p, 4);
  const __m256i source = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), source), bit);
  return _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(char(value)));
}
// Two bits of a byte never cross its border, so shifts of 16-bit lanes do.
LAPIDARY_INLINE Bytes bit_pairs_high(Bytes a, int pair) {
  switch (pair) {
    case 0: return _mm256_slli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(0x03)), 4);
    case 1: return _mm256_slli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(0x0c)), 2);
    case 2: return _mm256_and_si256(a, _mm256_set1_epi8(0x30));
    default: return _mm256_srli_epi16(_mm256_and_si256(a, _mm256_set1_epi8(char(0xc0))), 2);
  }
}
LAPIDARY_INLINE Bytes broadcast4(const void* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}
// vpmaddubsw saturates at 16 bits; 2 · 127 · 128 stays below.
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) {
  const __m256i pairs = _mm256_maddubs_epi16(w, x);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Even and odd bytes widened to 16 bits, so that nothing saturates: 10 instructions where dot_u7 takes 3.
LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) {
  const __m256i even_w = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), odd_w = _mm256_srli_epi16(w, 8);
  const __m256i even_x = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd_x = _mm256_srai_epi16(x, 8);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(even_w, even_x));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(odd_w, odd_x));
}

// ── for matmul ────────────────────────────────────────────────────────────────────────────────────────────────────
static constexpr int kRegisters = 16;
LAPIDARY_INLINE Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
LAPIDARY_INLINE Bytes spread_bytes(I32 a) {
  const __m128i low = _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c);
  return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(low));
}
LAPIDARY_INLINE F32 bf16_even(Bytes a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
LAPIDARY_INLINE F32 bf16_odd(Bytes a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(int(0xffff0000u))));
}
// Magnitudes in the low byte of 16-bit elements to bf16. Of the two readings of a byte the right one is the smaller.
LAPIDARY_INLINE __m256i sfp8_to_bf16(__m256i byte) {
  const __m256i v = _mm256_and_si256(byte, _mm256_set1_epi16(127));
  const __m256i small = _mm256_add_epi16(_mm256_slli_epi16(v, 5), _mm256_set1_epi16(0x3400));
  const __m256i large = _mm256_add_epi16(_mm256_slli_epi16(v, 4), _mm256_set1_epi16(0x3800));
  const __m256i nonzero = _mm256_cmpgt_epi16(v, _mm256_setzero_si256());
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(byte, _mm256_set1_epi16(128)), 8);
  return _mm256_or_si256(_mm256_and_si256(_mm256_min_epi16(small, large), nonzero), sign);
}
LAPIDARY_INLINE void sfp8_to_f32(Bytes a, F32 (&out)[4]) {
  const __m256i even = sfp8_to_bf16(a), odd = sfp8_to_bf16(_mm256_srli_epi16(a, 8));
  out[0] = bf16_even(even);
  out[1] = bf16_even(odd);
  out[2] = bf16_odd(even);
  out[3] = bf16_odd(odd);
}

// Sums of byte products (simd/dot_sum.h says what these do). vpmaddubsw adds two products in 16 bits: with codes of b
// bits the sums of 32767 / (2 · 127 · (2^b − 1)) steps still fit, 8 for 4 bits, 4 for 5, 2 for 6 (and 4 for 3, of
// which half a group is 4 steps). Codes of 8 bits, less
// 128, go through |w| · (x with the sign of w), which fits once: 2 · 128 · 127.
template <int kBits>
static constexpr int kDotOffset = kBits == 8 ? 128 : 0;
template <int kBits>
struct DotSum {
  __m256i narrow, wide;
};
template <>
struct DotSum<4> {
  __m256i narrow;
};
template <int kBits>
LAPIDARY_INLINE DotSum<kBits> dot_start(int32_t start) {
  if constexpr (kBits == 4) {
    return {_mm256_setzero_si256()};
  } else {
    return {_mm256_setzero_si256(), _mm256_set1_epi32(start)};
  }
}
template <int kBits>
LAPIDARY_INLINE void dot_step(DotSum<kBits>& sum, Bytes w, Bytes x, int step) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kBits == 8) {
    const __m256i centred = _mm256_xor_si256(w, _mm256_set1_epi8(char(128)));
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(x, centred));
    sum.wide = _mm256_add_epi32(sum.wide, _mm256_madd_epi16(products, ones));
  } else {
    constexpr int kSteps = kBits == 4 ? 8 : kBits == 6 ? 2 : 4;
    const __m256i products = _mm256_maddubs_epi16(w, x);
    sum.narrow = step % kSteps == 0 ? products : _mm256_add_epi16(sum.narrow, products);
    if constexpr (kBits != 4) {
      if (step % kSteps == kSteps - 1) sum.wide = _mm256_add_epi32(sum.wide, _mm256_madd_epi16(sum.narrow, ones));
    }
  }
}
template <int kBits>
LAPIDARY_INLINE I32 dot_finish(DotSum<kBits> sum, int32_t start) {
  if constexpr (kBits == 4) {
    return _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_madd_epi16(sum.narrow, _mm256_set1_epi16(1)));
  } else {
    return sum.wide;
  }
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
