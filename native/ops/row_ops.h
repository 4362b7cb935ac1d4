// row_ops.h: contracts of the small row operations. A tensor [.., n] is a set of rows of n elements.
//
//   rms_norm(x, weight?)            out = x · r(x) · (weightBias + weight),   r(x) = 1 / √(mean(x²) + eps)
//   add_rms_norm(x, residual, postWeight?, preWeight?)
//                                   residualOut = outScale · (residual + x · r(x) · (weightBias + postWeight))
//                                   normed      = residualOut · r(residualOut) · (weightBias + preWeight)
//   layer_norm(x, weight?, bias?)   out = (x − mean(x)) / √(mean((x − mean(x))²) + eps) · weight + bias
//   gelu(x)                         out = ½ · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))
//   geglu(gate, up?)                out = gelu(gate) · up
//   add(a, b)                       out = a + b
//   softcap(x)                      out = cap · tanh(x / cap)
//   cast(x)                         out = x
//   mean_rows(x, starts)            out[s] = mean of the rows x[starts[s]] … x[starts[s + 1] − 1], in f32
//   gather_columns(x, order)        out[.., j] = x[.., order[j]], bit for bit
//
// Inputs
//   x, gate, a, residual   f32, bf16 or f16 [.., n], rank 1 … 4; the last dimension contiguous, leading ones strided at
//                          will. residual has the shape of x, not necessarily its dtype.
//   up                     shape and dtype of gate. Without it gate is [.., 2n]: gate in the first n columns, up after.
//   b                      a's shape, or one row [n] for all of a's; a's dtype or f32
//   starts                 i32 [sequences + 1], contiguous, not decreasing, from 0 to the rows of mean_rows' x, which has
//                          two dimensions; anything else is ERR_INDEX_OUT_OF_RANGE, and the sequence's mean is zeros,
//                          as is that of no rows
//   order                  i32 [m], contiguous: columns of gather_columns' x, of which out has m. Outside 0 … n − 1 is
//                          ERR_INDEX_OUT_OF_RANGE, and the column is zeros
//   weights, bias          f32 [n], contiguous. An absent weight is not multiplied at all, weightBias included; an
//                          absent bias is not added.
// Attributes
//   eps                    default 1e-6; added to the mean square, or the variance
//   weightBias             default 0; 1 for checkpoints that store w − 1 (Gemma 1 to 3)
//   postNorm               default true; false adds x itself to the residual
//   nextNorm               default true; false leaves the output `normed` out
//   outScale               default 1; Gemma 4's layer_scalar
//   outputDtype            of out and normed: f32, bf16, f16, or that of the first input (add_rms_norm: of residual),
//                          which is the default
//   cap                    above 0
// Outputs                  contiguous; residualOut has residual's dtype. `normed` is computed from residualOut as
//                          stored, so that the fused op equals its parts. No rows, or rows of no columns: empty.
//
// Arithmetic is f32 whatever the dtypes; only outputs are rounded. With u = 2⁻²⁴ and gamma(k) = k·u / (1 − k·u):
//   sums over a row        run in at least 16 interleaved partial sums, folded in pairs: an error of at most
//                          gamma(n / 16 + 8) times the sum of magnitudes
//   means                  sums of 32 rows are summed: at most gamma(32 + rows / 32 + 1) times the sum of magnitudes
//   gelu                   1.92 ulp for x ≥ 0; 5·(1 + |√(2/π)·(x + 0.044715·x³)|)·u relative, 2⁻¹²⁴ absolute below
//   tanh of softcap        2.61 ulp
// Squares must stay in range: |x| < 2⁶⁰, n < 2²⁴. NaN fills its row in norms and its element elsewhere; a row with an
// infinite element normalises to zeros and NaN.
#pragma once
#include "ops/call.h"

namespace lapidary {

struct RmsNormInput {
  enum Index { x, weight, kCount };
};
struct RmsNormParams {
  float eps;
  float weight_bias;
};

struct AddRmsNormInput {
  enum Index { x, residual, post_weight, pre_weight, kCount };
};
struct AddRmsNormParams {
  float eps;
  float weight_bias;
  float out_scale;
  bool post_norm;
  bool next_norm;
};

struct LayerNormInput {
  enum Index { x, weight, bias, kCount };
};
struct LayerNormParams {
  float eps;
};

struct MeanRowsInput {
  enum Index { x, starts, kCount };
};

struct SoftcapParams {
  float cap;
};

}  // namespace lapidary
