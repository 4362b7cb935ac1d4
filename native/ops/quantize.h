// quantize.h: contracts of quantize and dequantize.
//
// quantize rounds x [N, K] (f32, f16 or bf16, rows may be strided) to a stored format. Per block of 32, or per group:
//   q4_0  m = the first element of largest magnitude, with its sign; d = m / −8;
//         q = min(15, trunc(x·(1/d) + 8.5)); d stored as f16
//   q8_0  d = max|x| / 127; q = x·(1/d) rounded half away from zero; d stored as f16
//         Both in f32, with the unrounded d, operation for operation as ggml's reference: files come out alike to the
//         byte.
//   i4    s = max|x| / 7 rounded to scaleDtype; q = clip(x/s rounded half to even, −8, 7); groups of 32, 64 or 128.
//         Outputs packed i32 [N, K/8] (q + 8, lowest nibble first) and scales [N, K/groupSize]: compressed-tensors'
//         layout, which pack_weights takes. Dividing by the stored scale keeps every error below s/2, plus what s lost
//         to rounding at the extremes.
// A block of zeros, or so small that 1/d overflows (i4: that s rounds to 0), has scale 0 (−0 in q4_0, as the
// reference) and the codes of 0. A block with a NaN or an infinity has scale NaN and the codes of 0, so that it reads
// back as NaN. A scale beyond its dtype is infinite.
//
// dequantize expands w [N, K], in any stored dtype or packed, to f32 or bf16. f32 is exact, or rounded once where a
// format subtracts a minimum or has an f32 scale (kernels/cpu/weights/stored_formats.h); bf16 rounds that f32 to
// nearest even. `scale` is sfp8's tensor scale (stored only; panels hold it). A gate and up stack comes back as [gate;
// up].
//
// Both are one read and one write: bytes.
#pragma once
#include "ops/call.h"

namespace lapidary {

enum class QuantizeFormat : uint8_t { q4_0, q8_0, i4 };

struct QuantizeParams {
  QuantizeFormat format;
  int32_t group;
};

struct DequantizeParams {
  float scale;
};

}  // namespace lapidary
