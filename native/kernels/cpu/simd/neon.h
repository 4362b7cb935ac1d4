// simd/neon.h: the SIMD vocabulary for ARMv8-A without the dot product extensions.
#pragma once
#include "kernels/cpu/simd/neon_base.h"

namespace lapidary {
namespace {
namespace simd {

// Sums of two products stay below 2¹⁵ for w ≤ 127, so pairs are added before widening.
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) {
  const int8x16_t sw = vreinterpretq_s8_u8(w), sx = vreinterpretq_s8_u8(x);
  const int16x8_t low = vmull_s8(vget_low_s8(sw), vget_low_s8(sx));
  const int16x8_t high = vmull_high_s8(sw, sx);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
}
// Σ w·x = Σ (w − 128)·x + 128·Σ x, with w − 128 signed. Two products can reach 2¹⁵ here: they are widened first.
LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) {
  const int8x16_t sw = vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(128))), sx = vreinterpretq_s8_u8(x);
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(sw), vget_low_s8(sx)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(sw, sx));
  const int32x4_t sum = vpaddlq_s16(vpaddlq_s8(sx));
  return vaddq_s32(vaddq_s32(acc, vshlq_n_s32(sum, 7)), vpaddq_s32(low, high));
}

// Sums of byte products (simd/dot_sum.h says what these do). A 16-bit lane holds one product of each step: with codes
// of b bits 32767 / (127 · (2^b − 1)) steps fit, so 8 for 4 and 5 bits, 4 for 6 (and
// for 3, of which half a group is 4 steps). Codes of 8 bits, less 128, fit twice.
template <int kBits>
static constexpr int kDotOffset = kBits == 8 ? 128 : 0;
template <int kBits>
struct DotSum {
  int16x8_t low, high;
  int32x4_t wide;
};
template <int kBits>
LAPIDARY_INLINE DotSum<kBits> dot_start(int32_t start) {
  return {vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s32(start)};
}
template <int kBits>
LAPIDARY_INLINE void dot_step(DotSum<kBits>& sum, Bytes w, Bytes x, int step) {
  constexpr int kSteps = kBits == 3 ? 4 : kBits <= 5 ? 8 : kBits == 6 ? 4 : 2;
  const int8x16_t sw = vreinterpretq_s8_u8(kBits == 8 ? veorq_u8(w, vdupq_n_u8(128)) : w), sx = vreinterpretq_s8_u8(x);
  if (step % kSteps == 0) {
    sum.low = vmull_s8(vget_low_s8(sw), vget_low_s8(sx));
    sum.high = vmull_high_s8(sw, sx);
  } else {
    sum.low = vmlal_s8(sum.low, vget_low_s8(sw), vget_low_s8(sx));
    sum.high = vmlal_high_s8(sum.high, sw, sx);
  }
  // Lanes 4i … 4i+3 of the 16 belong to row i: one pairwise addition in 32 bits, one across the two halves.
  if (step % kSteps == kSteps - 1) {
    sum.wide = vaddq_s32(sum.wide, vpaddq_s32(vpaddlq_s16(sum.low), vpaddlq_s16(sum.high)));
  }
}
template <int kBits>
LAPIDARY_INLINE I32 dot_finish(DotSum<kBits> sum, int32_t) {
  return sum.wide;
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
