// simd/neon_base.h: the SIMD vocabulary (simd/scalar.h defines it) in Advanced SIMD as every ARMv8-A core has it: 4
// lanes. Not included by itself: simd/neon.h and simd/i8mm.h add their own dot products of bytes.
#pragma once
// The scalar vocabulary is compiled for arm64 too: what goes beyond the vocabulary asks for this, not for the processor.
#define LAPIDARY_SIMD_NEON 1
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "core/inline.h"
#include "kernels/cpu/simd/single_numbers.h"

namespace lapidary {
namespace {
namespace simd {

static constexpr int kLanes = 4;
using F32 = float32x4_t;
using I32 = int32x4_t;
using Mask = uint32x4_t;  // all ones or all zeros in each lane
using Bytes = uint8x16_t;

// ── F32: memory ───────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 zero() { return vdupq_n_f32(0.f); }
LAPIDARY_INLINE F32 set1(float x) { return vdupq_n_f32(x); }
LAPIDARY_INLINE F32 load(const float* p) { return vld1q_f32(p); }
LAPIDARY_INLINE F32 load_first(const float* p, int n) {
  float elements[4] = {};
  for (int i = 0; i < n; ++i) elements[i] = p[i];
  return vld1q_f32(elements);
}
LAPIDARY_INLINE void store(float* p, F32 a) { vst1q_f32(p, a); }
LAPIDARY_INLINE void store_first(float* p, F32 a, int n) {
  float elements[4];
  vst1q_f32(elements, a);
  for (int i = 0; i < n; ++i) p[i] = elements[i];
}

LAPIDARY_INLINE F32 widen_bf16(uint16x4_t bits) { return vreinterpretq_f32_u32(vshll_n_u16(bits, 16)); }
LAPIDARY_INLINE F32 widen_f16(uint16x4_t bits) { return vcvt_f32_f16(vreinterpret_f16_u16(bits)); }
LAPIDARY_INLINE uint16x4_t narrow_bf16(F32 a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
}
LAPIDARY_INLINE uint16x4_t narrow_f16(F32 a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
LAPIDARY_INLINE uint16x4_t load16_first(const uint16_t* p, int n) {
  uint16_t elements[4] = {};
  for (int i = 0; i < n; ++i) elements[i] = p[i];
  return vld1_u16(elements);
}
LAPIDARY_INLINE void store16_first(uint16_t* p, uint16x4_t a, int n) {
  uint16_t elements[4];
  vst1_u16(elements, a);
  for (int i = 0; i < n; ++i) p[i] = elements[i];
}
LAPIDARY_INLINE F32 load_bf16(const uint16_t* p) { return widen_bf16(vld1_u16(p)); }
LAPIDARY_INLINE F32 load_f16(const uint16_t* p) { return widen_f16(vld1_u16(p)); }
LAPIDARY_INLINE F32 load_bf16_first(const uint16_t* p, int n) { return widen_bf16(load16_first(p, n)); }
LAPIDARY_INLINE F32 load_f16_first(const uint16_t* p, int n) { return widen_f16(load16_first(p, n)); }
LAPIDARY_INLINE void store_bf16(uint16_t* p, F32 a) { vst1_u16(p, narrow_bf16(a)); }
LAPIDARY_INLINE void store_f16(uint16_t* p, F32 a) { vst1_u16(p, narrow_f16(a)); }
LAPIDARY_INLINE void store_bf16_first(uint16_t* p, F32 a, int n) { store16_first(p, narrow_bf16(a), n); }
LAPIDARY_INLINE void store_f16_first(uint16_t* p, F32 a, int n) { store16_first(p, narrow_f16(a), n); }

// ── F32: arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
LAPIDARY_INLINE F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
LAPIDARY_INLINE F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
LAPIDARY_INLINE F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
LAPIDARY_INLINE F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
LAPIDARY_INLINE F32 fnma(F32 a, F32 b, F32 c) { return vfmsq_f32(c, a, b); }
// Compare and select, because FMAX would return NaN where either is one.
LAPIDARY_INLINE F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
LAPIDARY_INLINE F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
LAPIDARY_INLINE F32 abs(F32 a) { return vabsq_f32(a); }
LAPIDARY_INLINE F32 copy_sign(F32 magnitude, F32 sign) { return vbslq_f32(vdupq_n_u32(0x80000000), sign, magnitude); }
LAPIDARY_INLINE F32 sqrt(F32 a) { return vsqrtq_f32(a); }
LAPIDARY_INLINE F32 round(F32 a) { return vrndnq_f32(a); }
// 2ⁿ may leave the exponent range of a float where a · 2ⁿ does not, so it is applied as two factors. Only the second
// product rounds: the first is normal, or the result is 0.
LAPIDARY_INLINE F32 scale_exp2(F32 a, F32 n) {
  const int32x4_t exponent = vcvtnq_s32_f32(n);
  const int32x4_t half = vshrq_n_s32(exponent, 1);
  const int32x4_t rest = vsubq_s32(exponent, half);
  const int32x4_t bias = vdupq_n_s32(127);
  const F32 first = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
  const F32 second = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, bias), 23));
  return vmulq_f32(vmulq_f32(a, first), second);
}
LAPIDARY_INLINE F32 scale_exp2_normal(F32 a, F32 n) {
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}
LAPIDARY_INLINE float reduce_add(F32 a) { return vaddvq_f32(a); }
LAPIDARY_INLINE float reduce_max(F32 a) { return vmaxvq_f32(a); }

// ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Mask less(F32 a, F32 b) { return vcltq_f32(a, b); }
LAPIDARY_INLINE Mask less_equal(F32 a, F32 b) { return vcleq_f32(a, b); }
LAPIDARY_INLINE Mask less(I32 a, I32 b) { return vcltq_s32(a, b); }
LAPIDARY_INLINE Mask mask_and(Mask a, Mask b) { return vandq_u32(a, b); }
LAPIDARY_INLINE F32 select(Mask m, F32 yes, F32 no) { return vbslq_f32(m, yes, no); }
LAPIDARY_INLINE bool any(Mask m) { return vmaxvq_u32(m) != 0; }

// ── I32 ───────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE I32 zero_i32() { return vdupq_n_s32(0); }
LAPIDARY_INLINE I32 set1_i32(int32_t x) { return vdupq_n_s32(x); }
LAPIDARY_INLINE I32 load_i32(const int32_t* p) { return vld1q_s32(p); }
LAPIDARY_INLINE void store_i32(int32_t* p, I32 a) { vst1q_s32(p, a); }
LAPIDARY_INLINE I32 iota() { return I32{0, 1, 2, 3}; }
LAPIDARY_INLINE I32 add(I32 a, I32 b) { return vaddq_s32(a, b); }
LAPIDARY_INLINE I32 sub(I32 a, I32 b) { return vsubq_s32(a, b); }
LAPIDARY_INLINE I32 mul(I32 a, I32 b) { return vmulq_s32(a, b); }
LAPIDARY_INLINE F32 to_f32(I32 a) { return vcvtq_f32_s32(a); }
LAPIDARY_INLINE I32 to_i32(F32 a) { return vcvtnq_s32_f32(a); }
LAPIDARY_INLINE void store_i8(int8_t* p, I32 a) {
  const int16x4_t words = vqmovn_s32(a);
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
  const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
  memcpy(p, &four, 4);
}
LAPIDARY_INLINE uint8x8_t load4(const void* p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return vreinterpret_u8_u32(vdup_n_u32(four));
}
LAPIDARY_INLINE I32 load_u8_i32(const uint8_t* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load4(p)))));
}
LAPIDARY_INLINE I32 load_i8_i32(const int8_t* p) {
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load4(p)))));
}
LAPIDARY_INLINE F32 load_i8(const int8_t* p) { return to_f32(load_i8_i32(p)); }

// ── Bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Bytes load_bytes(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
LAPIDARY_INLINE Bytes load_bytes_once(const void* p) { return load_bytes(p); }
LAPIDARY_INLINE void store_bytes(void* p, Bytes a) { vst1q_u8(static_cast<uint8_t*>(p), a); }
LAPIDARY_INLINE Bytes low_nibbles(Bytes a) { return vandq_u8(a, vdupq_n_u8(15)); }
LAPIDARY_INLINE Bytes high_nibbles(Bytes a) { return vshrq_n_u8(a, 4); }
LAPIDARY_INLINE Bytes or_bytes(Bytes a, Bytes b) { return vorrq_u8(a, b); }
LAPIDARY_INLINE Bytes look_up(Bytes numbers, const uint8_t (&table)[16]) {
  return vqtbl1q_u8(vld1q_u8(table), numbers);
}
LAPIDARY_INLINE Bytes bits_to_bytes(const void* p, uint8_t value) {
  const uint8_t* bits = static_cast<const uint8_t*>(p);
  const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
  const uint8x16_t set = vtstq_u8(vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1])), bit);
  return vandq_u8(set, vdupq_n_u8(value));
}
LAPIDARY_INLINE Bytes bit_pairs_high(Bytes a, int pair) {
  switch (pair) {
    case 0: return vshlq_n_u8(vandq_u8(a, vdupq_n_u8(0x03)), 4);
    case 1: return vshlq_n_u8(vandq_u8(a, vdupq_n_u8(0x0c)), 2);
    case 2: return vandq_u8(a, vdupq_n_u8(0x30));
    default: return vshrq_n_u8(vandq_u8(a, vdupq_n_u8(0xc0)), 2);
  }
}
LAPIDARY_INLINE Bytes broadcast4(const void* p) {
  uint32_t four;
  memcpy(&four, p, 4);
  return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

// ── for matmul ────────────────────────────────────────────────────────────────────────────────────────────────────
static constexpr int kRegisters = 32;
LAPIDARY_INLINE Bytes add_bytes(Bytes a, Bytes b) { return vaddq_u8(a, b); }
LAPIDARY_INLINE Bytes spread_bytes(I32 a) {
  return vreinterpretq_u8_u32(vmulq_n_u32(vandq_u32(vreinterpretq_u32_s32(a), vdupq_n_u32(255)), 0x01010101u));
}
LAPIDARY_INLINE F32 bf16_even(Bytes a) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(a), 16)); }
LAPIDARY_INLINE F32 bf16_odd(Bytes a) {
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(a), vdupq_n_u32(0xffff0000u)));
}
// Magnitudes in the low byte of 16-bit elements to bf16. Of the two readings of a byte the right one is the smaller.
LAPIDARY_INLINE Bytes sfp8_to_bf16(uint16x8_t byte) {
  const uint16x8_t v = vandq_u16(byte, vdupq_n_u16(127));
  const uint16x8_t small = vaddq_u16(vshlq_n_u16(v, 5), vdupq_n_u16(0x3400));
  const uint16x8_t large = vaddq_u16(vshlq_n_u16(v, 4), vdupq_n_u16(0x3800));
  const uint16x8_t magnitude = vandq_u16(vminq_u16(small, large), vtstq_u16(v, v));
  return vreinterpretq_u8_u16(vorrq_u16(magnitude, vshlq_n_u16(vandq_u16(byte, vdupq_n_u16(128)), 8)));
}
LAPIDARY_INLINE void sfp8_to_f32(Bytes a, F32 (&out)[4]) {
  const uint16x8_t bytes = vreinterpretq_u16_u8(a);
  const Bytes even = sfp8_to_bf16(vandq_u16(bytes, vdupq_n_u16(255))), odd = sfp8_to_bf16(vshrq_n_u16(bytes, 8));
  out[0] = bf16_even(even);
  out[1] = bf16_even(odd);
  out[2] = bf16_odd(even);
  out[3] = bf16_odd(odd);
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
