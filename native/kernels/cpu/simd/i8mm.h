// simd/i8mm.h: the SIMD vocabulary for ARMv8.2-A with the dot product and int8 matrix extensions, whose USDOT is
// exactly the vocabulary's dot product.
#pragma once
#include "kernels/cpu/simd/neon_base.h"

namespace lapidary {
namespace {
namespace simd {

LAPIDARY_INLINE I32 dot_u8(I32 acc, Bytes w, Bytes x) { return vusdotq_s32(acc, w, vreinterpretq_s8_u8(x)); }
LAPIDARY_INLINE I32 dot_u7(I32 acc, Bytes w, Bytes x) { return dot_u8(acc, w, x); }

}  // namespace simd
}  // namespace
}  // namespace lapidary

#include "kernels/cpu/simd/dot_sum.h"
