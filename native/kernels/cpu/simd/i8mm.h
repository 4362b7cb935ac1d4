// simd/i8mm.h: the SIMD vocabulary for ARMv8.2-A with the dot product and int8 matrix extensions, whose USDOT is
// exactly the vocabulary's dot product. Its USMMLA multiplies two rows by two rows, eight bytes deep: twice the work of
// a USDOT in one instruction, for operands in another order.
#pragma once
#include "kernels/cpu/simd/neon_base.h"

namespace lapidary {
namespace {
namespace simd {

LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) { return vusdotq_s32(acc, w, vreinterpretq_s8_u8(x)); }
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) { return dot_u8(acc, w, x); }

// ── byte matrices (kernels/cpu/matmul/byte_matrices.h) ────────────────────────────────────────────────────────────
#define LAPIDARY_SIMD_BYTE_MATRICES 1

// Four rows of W against two rows of x: {w0·x0, w0·x1, w1·x0, w1·x1} and the same of w2, w3.
struct PairSum {
  int32x4_t low, high;
};
LAPIDARY_INLINE PairSum pair_start(int32_t x0, int32_t x1) {
  const int32x2_t both = {x0, x1};
  return {vcombine_s32(both, both), vcombine_s32(both, both)};
}
// Two steps of four bytes for each of four rows become eight bytes of rows 0 and 1, and of rows 2 and 3.
LAPIDARY_INLINE void pair_steps(Bytes& even, Bytes& odd) {
  const uint32x4_t first = vreinterpretq_u32_u8(even), second = vreinterpretq_u32_u8(odd);
  even = vreinterpretq_u8_u32(vzip1q_u32(first, second));
  odd = vreinterpretq_u8_u32(vzip2q_u32(first, second));
}
// low, high: as pair_steps leaves them, unsigned. x: eight signed bytes of each of two rows.
LAPIDARY_INLINE void pair_add(PairSum& sum, Bytes low, Bytes high, Bytes x) {
  sum.low = vusmmlaq_s32(sum.low, low, vreinterpretq_s8_u8(x));
  sum.high = vusmmlaq_s32(sum.high, high, vreinterpretq_s8_u8(x));
}
// The four rows of W against row `row` (0 or 1) of x, in lanes.
LAPIDARY_INLINE I32 pair_lanes(PairSum sum, int row) {
  return row == 0 ? vuzp1q_s32(sum.low, sum.high) : vuzp2q_s32(sum.low, sum.high);
}

}  // namespace simd
}  // namespace
}  // namespace lapidary

#include "kernels/cpu/simd/dot_sum.h"
