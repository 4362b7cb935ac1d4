// matmul.h: contract of matmul: y = x · Wᵀ (+ bias), with GeLU or GeGLU as an epilogue, added to a residual.
//
//   x       f32|bf16 [.., K], last dimension contiguous; with two dimensions rows may be strided, otherwise contiguous
//   weight  W [N, K]: panels of this device's panel_rows (ops/weight_panels.h, every format), or f32|f16|bf16 with
//           strided rows (correct, not fast)
//   bias    f32 [N], added before the epilogue
//   residual  f32 of out's shape, contiguous: added last, before out is rounded
//   out     f32|bf16 [.., N]. Epilogue gelu: the tanh form of each element. Epilogue geglu: [.., N/2] = gelu(x·gateᵀ + …) ·
//           (x·upᵀ + …) for a weight stacked with kPanelGateUp; without it such a weight gives [gate, up]. No rows: no work
//
// What is computed:
//   integer formats  x is rounded to int8 in groups of 32 consecutive columns, q = round(x · 127 / max|x|), half to even,
//                    scale = max|x| / 127. Within a group integer sums are exact; groups are scaled and added in f32 by
//                    fused multiply-adds in increasing k (kernels/cpu/matmul/panel_codecs.h has the formula of each
//                    format). A NaN or infinity in a group of x makes its row NaN.
//   float formats    weights exact, x in f32, f32 fused multiply-adds in a fixed order. Where the processor multiplies pairs of
//                    bf16, bf16 weights times bf16 x are: products and order are as exact and as fixed, and numbers below
//                    2⁻¹²⁶ count as 0 (kernels/cpu/matmul_avx512_bf16.inl.h)
//   On AMX with more than 8 rows, bf16, f16 and sfp8 weights, and with more than 48 rows integer formats too, are
//   multiplied as bf16: x and the dequantised weights rounded to nearest even, f32 accumulation
//   (kernels/cpu/matmul_amx.inl.h).
//   On CUDA with more than 8 rows everything but f32 and row-major weights is multiplied on tensor cores: x is rounded to bf16,
//   weights are exact but for formats with a minimum, q3_k, q6_k, iq4_xs and f16, which are rounded to bf16; f32 accumulation, in another order
//   with more than 64 rows than with fewer (kernels/cuda/matmul/tensor_core.cuh). With up to 8 rows it is as above, the groups
//   of a row in several interleaved sums.
// A row of the result depends neither on the other rows nor on their number (but for the AMX and CUDA paths named above), nor
// on the number of threads.
//
// Columns past K count as x = 0. Cost: 2·M·N·K operations; W once while M is small.
#pragma once
#include "ops/call.h"

namespace lapidary {

enum class MatmulEpilogue : uint8_t { none, geglu, gelu };

struct MatmulParams {
  MatmulEpilogue epilogue;
};

}  // namespace lapidary
