// simd/dot_sum.h: DotSum where one instruction adds four byte products to a lane (and for the scalar definition).
//
// A DotSum adds up byte products over the eight vectors of a group of 32 columns; with codes of 3, 6 and 8 bits also over
// the four of half a group. It exists because AVX2 and plain NEON
// can add several products in 16 bits before they widen, and how many depends on the width of the codes:
//   DotSum<bits> sum = dot_start<bits>(start);
//   dot_step<bits>(sum, w, x, step)     codes w < 2^bits (unsigned; 3, 4, 5, 6 or 8 bits), x −127 … 127, step 0 … 7 a
//   constant dot_finish<bits>(sum, start)        start + Σ (w − kDotOffset<bits>) · x, exact
// An ISA uses `start` in one of the two calls; both must be given the same.
#pragma once

namespace lapidary {
namespace {
namespace simd {

template <int kBits>
static constexpr int kDotOffset = 0;
template <int kBits>
using DotSum = I32;

template <int kBits>
LAPIDARY_INLINE DotSum<kBits> dot_start(int32_t start) {
  return set1_i32(start);
}
template <int kBits>
LAPIDARY_INLINE void dot_step(DotSum<kBits>& sum, Bytes w, Bytes x, int) {
  sum = dot_u8(sum, w, x);
}
template <int kBits>
LAPIDARY_INLINE I32 dot_finish(DotSum<kBits> sum, int32_t) {
  return sum;
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
