// simd/scalar.h: the SIMD vocabulary in plain C++. It is also the vocabulary's definition: every other simd/<isa>.h
// provides the same names with the same meaning, and test/native/simd.cc compares each with this one.
//
// Types (all of kLanes 32-bit lanes)   F32 floats   I32 integers   Mask one truth value per lane
//                                      Bytes 4·kLanes bytes: four per lane, lane i owning bytes 4i … 4i+3
// Every function is elementwise unless it says otherwise. "First n" functions touch only n elements of memory, 0 ≤ n ≤
// kLanes; lanes past n read as 0 and are not written.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/inline.h"
#include "kernels/cpu/simd/single_numbers.h"

namespace lapidary {
namespace {
namespace simd {

static constexpr int kLanes = 4;
struct F32 {
  float lane[kLanes];
};
struct I32 {
  int32_t lane[kLanes];
};
struct Mask {
  bool lane[kLanes];
};
struct Bytes {
  uint8_t byte[4 * kLanes];
};

#define LAPIDARY_FOR_LANES for (int i = 0; i < kLanes; ++i)

// ── F32: memory ────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 zero() { return F32{}; }
LAPIDARY_INLINE F32 set1(float x) {
  F32 r;
  LAPIDARY_FOR_LANES r.lane[i] = x;
  return r;
}
LAPIDARY_INLINE F32 load(const float* p) {
  F32 r;
  memcpy(&r, p, sizeof r);
  return r;
}
LAPIDARY_INLINE F32 load_first(const float* p, int n) {
  F32 r{};
  memcpy(&r, p, size_t(n) * 4);
  return r;
}
LAPIDARY_INLINE void store(float* p, F32 a) { memcpy(p, &a, sizeof a); }
LAPIDARY_INLINE void store_first(float* p, F32 a, int n) { memcpy(p, &a, size_t(n) * 4); }
// kLanes 16-bit floats, widened or rounded (to nearest even).
LAPIDARY_INLINE F32 load_bf16(const uint16_t* p) {
  F32 r;
  LAPIDARY_FOR_LANES r.lane[i] = bf16_to_f32(p[i]);
  return r;
}
LAPIDARY_INLINE F32 load_f16(const uint16_t* p) {
  F32 r;
  LAPIDARY_FOR_LANES r.lane[i] = f16_to_f32(p[i]);
  return r;
}
LAPIDARY_INLINE F32 load_bf16_first(const uint16_t* p, int n) {
  F32 r{};
  for (int i = 0; i < n; ++i) r.lane[i] = bf16_to_f32(p[i]);
  return r;
}
LAPIDARY_INLINE F32 load_f16_first(const uint16_t* p, int n) {
  F32 r{};
  for (int i = 0; i < n; ++i) r.lane[i] = f16_to_f32(p[i]);
  return r;
}
LAPIDARY_INLINE void store_bf16(uint16_t* p, F32 a) { LAPIDARY_FOR_LANES p[i] = f32_to_bf16(a.lane[i]); }
LAPIDARY_INLINE void store_f16(uint16_t* p, F32 a) { LAPIDARY_FOR_LANES p[i] = f32_to_f16(a.lane[i]); }
LAPIDARY_INLINE void store_bf16_first(uint16_t* p, F32 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = f32_to_bf16(a.lane[i]);
}
LAPIDARY_INLINE void store_f16_first(uint16_t* p, F32 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = f32_to_f16(a.lane[i]);
}
// kLanes signed bytes as floats.
LAPIDARY_INLINE F32 load_i8(const int8_t* p) {
  F32 r;
  LAPIDARY_FOR_LANES r.lane[i] = p[i];
  return r;
}

// ── F32: arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE F32 add(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] += b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 sub(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] -= b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 mul(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] *= b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 div(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] /= b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 fma(F32 a, F32 b, F32 c) {
  LAPIDARY_FOR_LANES c.lane[i] = __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]);
  return c;
}  // a·b + c
LAPIDARY_INLINE F32 fnma(F32 a, F32 b, F32 c) {
  LAPIDARY_FOR_LANES c.lane[i] = __builtin_fmaf(-a.lane[i], b.lane[i], c.lane[i]);
  return c;
}  // c − a·b
// max and min return b where either is NaN (as x86 does).
LAPIDARY_INLINE F32 max(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 min(F32 a, F32 b) {
  LAPIDARY_FOR_LANES a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 abs(F32 a) {
  LAPIDARY_FOR_LANES a.lane[i] = __builtin_fabsf(a.lane[i]);
  return a;
}
// |magnitude| with the sign of `sign`.
LAPIDARY_INLINE F32 copy_sign(F32 magnitude, F32 sign) {
  LAPIDARY_FOR_LANES sign.lane[i] = __builtin_copysignf(magnitude.lane[i], sign.lane[i]);
  return sign;
}
LAPIDARY_INLINE F32 sqrt(F32 a) {
  LAPIDARY_FOR_LANES a.lane[i] = __builtin_sqrtf(a.lane[i]);
  return a;
}
LAPIDARY_INLINE F32 round(F32 a) {
  LAPIDARY_FOR_LANES a.lane[i] = __builtin_nearbyintf(a.lane[i]);
  return a;
}  // to nearest even
// a · 2ⁿ for integral n of at most 252 in magnitude, rounded once, through the subnormals to 0 and up to infinity.
// |a| in [2⁻¹⁰⁰, 2¹⁰⁰], or 0, infinite or NaN (n then may be NaN too).
LAPIDARY_INLINE F32 scale_exp2(F32 a, F32 n) {
  LAPIDARY_FOR_LANES {
    const int exponent = n.lane[i] >= -1000.f ? n.lane[i] <= 1000.f ? int(n.lane[i]) : 1000 : -1000;
    a.lane[i] = __builtin_ldexpf(a.lane[i], exponent);
  }
  return a;
}
// The same where a and the result are normal, or a is NaN: cheaper where there is no VSCALEFPS.
LAPIDARY_INLINE F32 scale_exp2_normal(F32 a, F32 n) { return scale_exp2(a, n); }
// Across the lanes, in an order of the ISA's own. No lane may be NaN for reduce_max.
LAPIDARY_INLINE float reduce_add(F32 a) { return (a.lane[0] + a.lane[1]) + (a.lane[2] + a.lane[3]); }
LAPIDARY_INLINE float reduce_max(F32 a) {
  float m = a.lane[0];
  LAPIDARY_FOR_LANES m = a.lane[i] > m ? a.lane[i] : m;
  return m;
}

// ── masks ──────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Mask less(F32 a, F32 b) {
  Mask m;
  LAPIDARY_FOR_LANES m.lane[i] = a.lane[i] < b.lane[i];
  return m;
}
LAPIDARY_INLINE Mask less_equal(F32 a, F32 b) {
  Mask m;
  LAPIDARY_FOR_LANES m.lane[i] = a.lane[i] <= b.lane[i];
  return m;
}
LAPIDARY_INLINE Mask less(I32 a, I32 b) {
  Mask m;
  LAPIDARY_FOR_LANES m.lane[i] = a.lane[i] < b.lane[i];
  return m;
}
LAPIDARY_INLINE Mask mask_and(Mask a, Mask b) {
  LAPIDARY_FOR_LANES a.lane[i] = a.lane[i] && b.lane[i];
  return a;
}
LAPIDARY_INLINE F32 select(Mask m, F32 yes, F32 no) {
  LAPIDARY_FOR_LANES no.lane[i] = m.lane[i] ? yes.lane[i] : no.lane[i];
  return no;
}
LAPIDARY_INLINE bool any(Mask m) {
  bool r = false;
  LAPIDARY_FOR_LANES r |= m.lane[i];
  return r;
}

// ── I32 ────────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE I32 zero_i32() { return I32{}; }
LAPIDARY_INLINE I32 set1_i32(int32_t x) {
  I32 r;
  LAPIDARY_FOR_LANES r.lane[i] = x;
  return r;
}
LAPIDARY_INLINE I32 load_i32(const int32_t* p) {
  I32 r;
  memcpy(&r, p, sizeof r);
  return r;
}
LAPIDARY_INLINE void store_i32(int32_t* p, I32 a) { memcpy(p, &a, sizeof a); }
LAPIDARY_INLINE I32 iota() {
  I32 r;
  LAPIDARY_FOR_LANES r.lane[i] = i;
  return r;
}
// Integers wrap, as vectors do; unsigned, because a signed overflow is undefined.
LAPIDARY_INLINE I32 add(I32 a, I32 b) {
  LAPIDARY_FOR_LANES a.lane[i] = int32_t(uint32_t(a.lane[i]) + uint32_t(b.lane[i]));
  return a;
}
LAPIDARY_INLINE I32 sub(I32 a, I32 b) {
  LAPIDARY_FOR_LANES a.lane[i] = int32_t(uint32_t(a.lane[i]) - uint32_t(b.lane[i]));
  return a;
}
LAPIDARY_INLINE I32 mul(I32 a, I32 b) {
  LAPIDARY_FOR_LANES a.lane[i] = int32_t(uint32_t(a.lane[i]) * uint32_t(b.lane[i]));
  return a;
}
LAPIDARY_INLINE F32 to_f32(I32 a) {
  F32 r;
  LAPIDARY_FOR_LANES r.lane[i] = float(a.lane[i]);
  return r;
}
LAPIDARY_INLINE I32 to_i32(F32 a) {
  I32 r;
  LAPIDARY_FOR_LANES r.lane[i] = int32_t(__builtin_nearbyintf(a.lane[i]));
  return r;
}  // to nearest even; |a| < 2³¹
// kLanes integers, each saturated to a signed byte.
LAPIDARY_INLINE void store_i8(int8_t* p, I32 a) {
  LAPIDARY_FOR_LANES p[i] = int8_t(a.lane[i] < -128 ? -128 : a.lane[i] > 127 ? 127 : a.lane[i]);
}
// kLanes unsigned bytes as integers.
LAPIDARY_INLINE I32 load_u8_i32(const uint8_t* p) {
  I32 r;
  LAPIDARY_FOR_LANES r.lane[i] = p[i];
  return r;
}
LAPIDARY_INLINE I32 load_i8_i32(const int8_t* p) {
  I32 r;
  LAPIDARY_FOR_LANES r.lane[i] = p[i];
  return r;
}

// ── Bytes ──────────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_INLINE Bytes load_bytes(const void* p) {
  Bytes r;
  memcpy(&r, p, sizeof r);
  return r;
}
// The same for a value with several uses: compilers would make it a memory operand of each.
LAPIDARY_INLINE Bytes load_bytes_once(const void* p) { return load_bytes(p); }
LAPIDARY_INLINE void store_bytes(void* p, Bytes a) { memcpy(p, &a, sizeof a); }
LAPIDARY_INLINE Bytes low_nibbles(Bytes a) {
  for (auto& b : a.byte) b &= 15;
  return a;
}  // byte & 15
LAPIDARY_INLINE Bytes high_nibbles(Bytes a) {
  for (auto& b : a.byte) b >>= 4;
  return a;
}  // byte >> 4
LAPIDARY_INLINE Bytes or_bytes(Bytes a, Bytes b) {
  for (int i = 0; i < 4 * kLanes; ++i) a.byte[i] |= b.byte[i];
  return a;
}
// table[byte] for bytes 0 … 15.
LAPIDARY_INLINE Bytes look_up(Bytes numbers, const uint8_t (&table)[16]) {
  for (auto& b : numbers.byte) b = table[b];
  return numbers;
}
// 4·kLanes bits in memory order, bit i (least significant first) giving byte i: `value` if set, else 0.
LAPIDARY_INLINE Bytes bits_to_bytes(const void* p, uint8_t value) {
  Bytes r;
  for (int i = 0; i < 4 * kLanes; ++i) r.byte[i] = (static_cast<const uint8_t*>(p)[i / 8] >> (i % 8)) & 1 ? value : 0;
  return r;
}
// (byte >> 2·pair) & 3, shifted left by 4: the upper two bits of 6-bit values, `pair` 0 … 3.
LAPIDARY_INLINE Bytes bit_pairs_high(Bytes a, int pair) {
  for (auto& b : a.byte) b = uint8_t(((b >> (2 * pair)) & 3) << 4);
  return a;
}
// The same four bytes in every lane.
LAPIDARY_INLINE Bytes broadcast4(const void* p) {
  Bytes r;
  LAPIDARY_FOR_LANES memcpy(r.byte + 4 * i, p, 4);
  return r;
}
// acc + Σ over the lane's four bytes of w (unsigned) · x (signed). Exact for w ≤ 127; dot_u8 for any w.
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) {
  LAPIDARY_FOR_LANES for (int j = 0; j < 4; ++j) acc.lane[i] += int32_t(w.byte[4 * i + j]) * int8_t(x.byte[4 * i + j]);
  return acc;
}
LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) { return dot_u7(acc, w, x); }

#undef LAPIDARY_FOR_LANES

// ── for matmul ─────────────────────────────────────────────────────────────────────────────────────────────────────
// Architectural vector registers: what register tiles are sized by.
static constexpr int kRegisters = 16;
// Sums of bytes, modulo 256, and the low byte of each lane in all four of its bytes.
LAPIDARY_INLINE Bytes add_bytes(Bytes a, Bytes b) {
  for (int i = 0; i < 4 * kLanes; ++i) a.byte[i] = uint8_t(a.byte[i] + b.byte[i]);
  return a;
}
LAPIDARY_INLINE Bytes spread_bytes(I32 a) {
  Bytes r;
  for (int i = 0; i < 4 * kLanes; ++i) r.byte[i] = uint8_t(a.lane[i / 4]);
  return r;
}
// The two bf16 of each lane as floats: the one at the lower address, the other.
LAPIDARY_INLINE F32 bf16_even(Bytes a) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = bf16_to_f32(uint16_t(a.byte[4 * i] | a.byte[4 * i + 1] << 8));
  return r;
}
LAPIDARY_INLINE F32 bf16_odd(Bytes a) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r.lane[i] = bf16_to_f32(uint16_t(a.byte[4 * i + 2] | a.byte[4 * i + 3] << 8));
  return r;
}
// gemma.cpp's switching float, bytes j of every lane to out[j]: bit 7 sign, v the others; (4 + v mod 4) · 2^(v/4 − 25)
// for v < 64, (8 + v mod 8) · 2^(v/8 − 18) above; v = 0 is 0.
LAPIDARY_INLINE float sfp8_to_f32(uint8_t byte) {
  const int v = byte & 127;
  const int large = 0x3800 + (v << 4), small = 0x3400 + (v << 5);
  return bf16_to_f32(uint16_t((byte & 128) << 8 | (v == 0 ? 0 : v < 64 ? small : large)));
}
LAPIDARY_INLINE void sfp8_to_f32(Bytes a, F32 (&out)[4]) {
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < kLanes; ++i) out[j].lane[i] = sfp8_to_f32(a.byte[4 * i + j]);
}

}  // namespace simd
}  // namespace
}  // namespace lapidary

#include "kernels/cpu/simd/dot_sum.h"
