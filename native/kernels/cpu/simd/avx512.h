// simd/avx512.h: the SIMD vocabulary (simd/scalar.h defines it) in AVX-512 F, BW, VL, DQ and VNNI: 16 lanes.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/inline.h"
#include "kernels/cpu/simd/single_numbers.h"

// gcc 12 warns about its own _mm512_undefined_ps() (GCC PR 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace lapidary {
namespace {
namespace simd {

static constexpr int kLanes = 16;
using F32 = __m512;
using I32 = __m512i;
using Mask = __mmask16;
using Bytes = __m512i;

LAPIDARY_INLINE __mmask16 first_mask(int n) { return __mmask16((1u << n) - 1); }

// ── F32: memory ───────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 zero() { return _mm512_setzero_ps(); }
LAPIDARY_INLINE F32 set1(float x) { return _mm512_set1_ps(x); }
LAPIDARY_INLINE F32 load(const float* p) { return _mm512_loadu_ps(p); }
LAPIDARY_INLINE F32 load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_mask(n), p); }
LAPIDARY_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a); }
LAPIDARY_INLINE void store_first(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first_mask(n), a); }

LAPIDARY_INLINE F32 widen_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
LAPIDARY_INLINE __m256i narrow_bf16(F32 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
LAPIDARY_INLINE __m256i narrow_f16(F32 a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LAPIDARY_INLINE F32 load_bf16(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LAPIDARY_INLINE F32 load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
LAPIDARY_INLINE F32 load_bf16_first(const uint16_t* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_mask(n), p));
}
LAPIDARY_INLINE F32 load_f16_first(const uint16_t* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_mask(n), p));
}
LAPIDARY_INLINE void store_bf16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a));
}
LAPIDARY_INLINE void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a));
}
LAPIDARY_INLINE void store_bf16_first(uint16_t* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_mask(n), narrow_bf16(a));
}
LAPIDARY_INLINE void store_f16_first(uint16_t* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_mask(n), narrow_f16(a));
}
LAPIDARY_INLINE F32 load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// ── F32: arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
LAPIDARY_INLINE F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
LAPIDARY_INLINE F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
LAPIDARY_INLINE F32 div(F32 a, F32 b) { return _mm512_div_ps(a, b); }
LAPIDARY_INLINE F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
LAPIDARY_INLINE F32 fnma(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a, b, c); }
LAPIDARY_INLINE F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
LAPIDARY_INLINE F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
LAPIDARY_INLINE F32 abs(F32 a) { return _mm512_abs_ps(a); }
LAPIDARY_INLINE F32 copy_sign(F32 magnitude, F32 sign) {
  const __m512i bit = _mm512_set1_epi32(int32_t(0x80000000));  // 0xca below: bit ? sign : magnitude
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xca));
}
LAPIDARY_INLINE F32 sqrt(F32 a) { return _mm512_sqrt_ps(a); }
LAPIDARY_INLINE F32 round(F32 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LAPIDARY_INLINE F32 scale_exp2(F32 a, F32 n) { return _mm512_scalef_ps(a, n); }
LAPIDARY_INLINE F32 scale_exp2_normal(F32 a, F32 n) { return scale_exp2(a, n); }
LAPIDARY_INLINE float reduce_add(F32 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LAPIDARY_INLINE float reduce_max(F32 a) {
  const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Mask less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
LAPIDARY_INLINE Mask less_equal(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
LAPIDARY_INLINE Mask less(I32 a, I32 b) { return _mm512_cmplt_epi32_mask(a, b); }
LAPIDARY_INLINE Mask mask_and(Mask a, Mask b) { return Mask(a & b); }
LAPIDARY_INLINE F32 select(Mask m, F32 yes, F32 no) { return _mm512_mask_blend_ps(m, no, yes); }
LAPIDARY_INLINE bool any(Mask m) { return m != 0; }

// ── I32 ───────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE I32 zero_i32() { return _mm512_setzero_si512(); }
LAPIDARY_INLINE I32 set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
LAPIDARY_INLINE I32 load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
LAPIDARY_INLINE void store_i32(int32_t* p, I32 a) { _mm512_storeu_si512(p, a); }
LAPIDARY_INLINE I32 iota() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
LAPIDARY_INLINE I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
LAPIDARY_INLINE I32 sub(I32 a, I32 b) { return _mm512_sub_epi32(a, b); }
LAPIDARY_INLINE I32 mul(I32 a, I32 b) { return _mm512_mullo_epi32(a, b); }
LAPIDARY_INLINE F32 to_f32(I32 a) { return _mm512_cvtepi32_ps(a); }
LAPIDARY_INLINE I32 to_i32(F32 a) { return _mm512_cvtps_epi32(a); }
LAPIDARY_INLINE void store_i8(int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a));
}
LAPIDARY_INLINE I32 load_u8_i32(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
LAPIDARY_INLINE I32 load_i8_i32(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// ── Bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
// The same for a value with several uses: compilers would make it a memory operand of each.
LAPIDARY_INLINE Bytes load_bytes_once(const void* p) {
  Bytes a = load_bytes(p);
  asm("" : "+v"(a));
  return a;
}
LAPIDARY_INLINE void store_bytes(void* p, Bytes a) { _mm512_storeu_si512(p, a); }
LAPIDARY_INLINE Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
LAPIDARY_INLINE Bytes high_nibbles(Bytes a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
LAPIDARY_INLINE Bytes or_bytes(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
LAPIDARY_INLINE Bytes look_up(Bytes numbers, const uint8_t (&table)[16]) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), numbers);
}
LAPIDARY_INLINE Bytes bits_to_bytes(const void* p, uint8_t value) {
  uint64_t bits;
  memcpy(&bits, p, 8);
  return _mm512_maskz_set1_epi8(__mmask64(bits), char(value));
}
// Two bits of a byte never cross its border, so shifts of 16-bit lanes do.
LAPIDARY_INLINE Bytes bit_pairs_high(Bytes a, int pair) {
  switch (pair) {
    case 0: return _mm512_slli_epi16(_mm512_and_si512(a, _mm512_set1_epi8(0x03)), 4);
    case 1: return _mm512_slli_epi16(_mm512_and_si512(a, _mm512_set1_epi8(0x0c)), 2);
    case 2: return _mm512_and_si512(a, _mm512_set1_epi8(0x30));
    default: return _mm512_srli_epi16(_mm512_and_si512(a, _mm512_set1_epi8(char(0xc0))), 2);
  }
}
LAPIDARY_INLINE Bytes broadcast4(const void* p) {
  int32_t four;
  memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(acc, w, x); }
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) { return dot_u8(acc, w, x); }

// ── for matmul ────────────────────────────────────────────────────────────────────────────────────────────────────
static constexpr int kRegisters = 32;
LAPIDARY_INLINE Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
LAPIDARY_INLINE Bytes spread_bytes(I32 a) {
  return _mm512_shuffle_epi8(a, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}
LAPIDARY_INLINE F32 bf16_even(Bytes a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
LAPIDARY_INLINE F32 bf16_odd(Bytes a) {
  return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(int(0xffff0000u))));
}
// The high bytes of the 128 magnitudes as bf16 come from one two-register table (VBMI). So do the low ones.
struct Sfp8Tables {
  alignas(64) uint8_t high[128], low[128];
};
constexpr Sfp8Tables make_sfp8_tables() {
  Sfp8Tables tables = {};
  for (int v = 1; v < 128; ++v) {
    const int bits = v < 64 ? 0x3400 + (v << 5) : 0x3800 + (v << 4);
    tables.high[v] = uint8_t(bits >> 8);
    tables.low[v] = uint8_t(bits);
  }
  return tables;
}
static constexpr Sfp8Tables kSfp8Tables = make_sfp8_tables();
// For each j, where the two bytes of a lane's bf16 lie: byte 2 from `low` (index 4i + j), byte 3 from `high` (64 + 4i +
// j).
struct Sfp8Indices {
  alignas(64) uint8_t index[4][64];
};
constexpr Sfp8Indices make_sfp8_indices() {
  Sfp8Indices indices = {};
  for (int j = 0; j < 4; ++j) {
    for (int i = 0; i < 16; ++i) {
      indices.index[j][4 * i + 2] = uint8_t(4 * i + j);
      indices.index[j][4 * i + 3] = uint8_t(64 + 4 * i + j);
    }
  }
  return indices;
}
static constexpr Sfp8Indices kSfp8Indices = make_sfp8_indices();
LAPIDARY_INLINE void sfp8_to_f32(Bytes a, F32 (&out)[4]) {
  const __m512i sign = _mm512_set1_epi8(char(0x80));  // vpermi2b looks at the low seven bits of an index only
  const __m512i magnitude =
      _mm512_permutex2var_epi8(_mm512_load_si512(kSfp8Tables.high), a, _mm512_load_si512(kSfp8Tables.high + 64));
  const __m512i high = _mm512_ternarylogic_epi32(magnitude, a, sign, 0xf8);  // magnitude | (a & sign)
  const __m512i low =
      _mm512_permutex2var_epi8(_mm512_load_si512(kSfp8Tables.low), a, _mm512_load_si512(kSfp8Tables.low + 64));
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm512_castsi512_ps(
        _mm512_maskz_permutex2var_epi8(0xcccccccccccccccc, low, _mm512_load_si512(kSfp8Indices.index[j]), high));
  }
}

}  // namespace simd
}  // namespace
}  // namespace lapidary

#include "kernels/cpu/simd/dot_sum.h"
