// simd/avx512_bf16.h: simd/avx512.h and the two functions of AVX512-BF16. Both treat f32 subnormals as zero, and the
// dot product flushes subnormal sums, whatever the control register says.
#pragma once
#include "kernels/cpu/simd/avx512.h"

namespace lapidary {
namespace {
namespace simd {

// 32 bf16, each rounded to nearest even: the 16 of `low`, then the 16 of `high`.
LAPIDARY_INLINE Bytes pack_bf16(F32 high, F32 low) {
  const __m512bh packed = _mm512_cvtne2ps_pbh(high, low);
  Bytes bytes;
  memcpy(&bytes, &packed, sizeof bytes);
  return bytes;
}
// acc + a₀·b₀ + a₁·b₁ over the two bf16 of each lane: the odd pair is added first, each product fused into its sum.
LAPIDARY_INLINE F32 dot_bf16(F32 acc, Bytes pairs_a, Bytes pairs_b) {
  __m512bh a, b;
  memcpy(&a, &pairs_a, sizeof a);
  memcpy(&b, &pairs_b, sizeof b);
  return _mm512_dpbf16_ps(acc, a, b);
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
