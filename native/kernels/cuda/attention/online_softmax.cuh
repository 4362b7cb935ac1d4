// attention/online_softmax.cuh: weights relative to a reference that follows the largest exponent (M. Milakov, N. Gimelshein 2018,
// arXiv 1805.02867; in this form T. Dao and others 2022, arXiv 2205.14135).
//
//   x = exponent to base 2 of a score;  w = 2^(x − reference);  sum = Σ w;  O = Σ w · v
//
// The reference moves only where a block's largest exponent lies more than kSlack above it (as FlashAttention-4 does): weights stay
// below 2⁸, and most blocks rescale nothing. It never is −∞: a row that sees no key of a block has weights 2^(−∞ − reference) = 0, and
// nothing here is ∞ − ∞ but where a score is.
#pragma once
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/math.h"

namespace lapidary::cuda::attention {

using namespace dev;

static constexpr float kSlack = 8.f;
static constexpr float kNoReference = -1e38f;
static constexpr float kMinusInfinity = -__builtin_huge_valf();

// Moves the reference where the block asks for it. Returns what O and sum are to be multiplied by: exactly 1 where it stays.
LAPIDARY_DEVICE float move_reference(float& reference, float largest) {
  const float moved = reference + kSlack < largest ? largest : reference;
  const float factor = moved > reference ? exp2_approx(reference - moved) : 1.f;
  reference = moved;
  return factor;
}

// 1 / sum; a row that saw nothing is zeros, a NaN stays one.
LAPIDARY_DEVICE float inverse_sum(float sum) { return sum == 0 ? 0.f : div(1.f, sum); }

}  // namespace lapidary::cuda::attention
