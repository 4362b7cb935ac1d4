// simd/single_numbers.h: conversions of one 16-bit float in plain C++, the same on every ISA. Part of the vocabulary.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/inline.h"

namespace lapidary {
namespace {
namespace simd {

LAPIDARY_INLINE float bf16_to_f32(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
// Round to nearest, ties to even; NaN stays NaN (quiet).
LAPIDARY_INLINE uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
LAPIDARY_INLINE float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const int exponent = (bits >> 10) & 31;
  const uint32_t fraction = bits & 0x3ff;
  uint32_t wide;
  float value;
  if (exponent == 0) {  // zero and subnormal: fraction · 2⁻²⁴ is exact
    value = float(fraction) * 0x1p-24f;
    memcpy(&wide, &value, 4);
    wide |= sign;
  } else if (exponent == 31) {
    wide = sign | 0x7f800000u | (fraction << 13);
  } else {
    wide = sign | (uint32_t(exponent + 112) << 23) | (fraction << 13);
  }
  memcpy(&value, &wide, 4);
  return value;
}
// Round to nearest, ties to even; overflow gives infinity.
LAPIDARY_INLINE uint16_t f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (bits >= 0x47800000u) return uint16_t(sign | 0x7c00);  // ≥ 2¹⁶ (65520 and above round up in the normal branch)
  if (bits < 0x38800000u) {  // below 2⁻¹⁴: adding 0.5 aligns the fraction to 2⁻²⁴, rounding once
    float magnitude, shifted;
    memcpy(&magnitude, &bits, 4);
    shifted = magnitude + 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &shifted, 4);
    return uint16_t(sign | (rounded - 0x3f000000u));
  }
  const uint32_t rounded = bits + 0xfff + ((bits >> 13) & 1);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
