// byte_matrices.h: integer sums of two rows of x at a time, where an instruction multiplies small matrices of bytes
// (USMMLA of i8mm: half as many instructions as dot products, and no broadcasts).
//
//   rows 2j, 2j + 1 of x, eight columns of each (as they lie in an entry, activations.h)
//     × rows 0, 1 and 2, 3 of a panel, eight columns of each (two steps of codes, put in that order by order_steps)
//     → PairSum: 2 × 2 sums of rows 0, 1 and of rows 2, 3; lanes() makes one vector per row of x of them, at the end
//
// Sums of integers: the same numbers as dot products give. The last row of an odd tile has what follows it in the entry
// for a neighbour, whose sums nobody reads.
#pragma once
#include "kernels/cpu/matmul/panel_codecs.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

#if LAPIDARY_SIMD_BYTE_MATRICES
static constexpr bool kByteMatrices = true;

// Vectors of two steps, in the order in which they are multiplied.
LAPIDARY_INLINE void order_steps(Bytes& even, Bytes& odd) { pair_steps(even, odd); }

// H rows of x against P panels.
template <int H, int P>
struct PairDots {
  static constexpr int kPairs = (H + 1) / 2;
  PairSum sums[kPairs][P];

  LAPIDARY_MEMBER_INLINE explicit PairDots(const int32_t (&starts)[H]) {
    for (int j = 0; j < kPairs; ++j) {
      for (int p = 0; p < P; ++p) sums[j][p] = pair_start(starts[2 * j], 2 * j + 1 < H ? starts[2 * j + 1] : 0);
    }
  }
  // Steps `step` (even) and step + 1 of an entry; w[p]: their vectors.
  LAPIDARY_MEMBER_INLINE void add(const Bytes (&w)[P][2], const unsigned char* entry, int step) {
    for (int j = 0; j < kPairs; ++j) {
      const Bytes x = load_bytes(entry + codes_at(step, 2 * j, H));
      for (int p = 0; p < P; ++p) pair_add(sums[j][p], w[p][0], w[p][1], x);
    }
  }
  LAPIDARY_MEMBER_INLINE I32 lanes(int h, int p) const { return pair_lanes(sums[h / 2][p], h % 2); }
};
#else
static constexpr bool kByteMatrices = false;

LAPIDARY_INLINE void order_steps(Bytes&, Bytes&) {}

template <int H, int P>
struct PairDots;
#endif

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
