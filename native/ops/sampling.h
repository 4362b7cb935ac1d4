// sampling.h: contracts of argmax and sample: from logits to token ids.
//
// argmax   logits f32|bf16 [rows, vocabulary] → tokens i32 [rows]
//
//   The index of the largest element of each row, the first one of equals. NaN never wins; a row of NaN alone gives 0.
//
// sample   logits f32|bf16 [rows, vocabulary] → tokens i32 [rows]
//
//   state     i32 [rows, 2]: seed and counter of each row's random numbers. The counter is incremented once per row and
//             call, whatever the settings, so that a captured program moves on by itself. Mutated
//   settings  f32 [rows, 4]: temperature, topK, topP and minP of each row, in place of the attributes
//   bias      f32 [rows, vocabulary] or [1, vocabulary]: added to the logits first; −∞ forbids a token
//
//   1. x = logits + bias, in f32. Where x is NaN the token has no probability.
//   2. temperature below 2⁻¹²⁶: the result is argmax x. Else w = exp((x − max x) / temperature), in f32.
//   3. topK > 0: the topK largest x stay; of equals the lower ids.
//   4. topP < 1: of these, in descending order of x (equals: ascending id), the shortest prefix whose w sum to at least
//      topP of their sum; at least one token.
//   5. minP > 0: of these, the ones with w ≥ minP. (The largest w is 1.)
//   6. The token is the first kept id, in ascending order, at which the running sum of w exceeds u · (sum of kept w).
//
//   A row whose largest x is infinite gives argmax x.
//
//   The order of 3 to 5 is that of Hugging Face transformers. Top-p: Holtzman et al. 2019, arXiv 1904.09751; min-p:
//   Nguyen et al. 2024, arXiv 2407.01082.
//
//   u = (2²¹ · a + ⌊b / 2¹¹⌋) · 2⁻⁵³, in [0, 1), of the first two words a, b of Philox4x32-10 with key (seed, 0) and
//   counter (counter, 0, 0, 0): Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
//   Sums are f32 within 256 tokens and double beyond; w and its sums carry the rounding of f32. Results are the same
//   for any number of threads. They may differ between instruction sets where a sum is within rounding of its boundary.
//
// Settings outside their range (temperature and topK finite and ≥ 0, topP and minP in [0, 1]) are ERR_INVALID_ARGUMENT:
// from attributes at once, from `settings` at execution, where the row's token is 0. Rows of logits and of bias may be
// strided; state and settings are contiguous. No input may alias state. No rows: nothing happens. An empty vocabulary
// is ERR_SHAPE_MISMATCH.
#pragma once
#include "ops/call.h"

namespace lapidary {

struct ArgmaxInput {
  enum Index { logits, kCount };
};

struct SampleInput {
  enum Index { logits, state, settings, bias, kCount };
};

// A row of `settings`, and the op's attributes.
struct SampleParams {
  float temperature;
  float top_k;  // 0: all
  float top_p;
  float min_p;
};

}  // namespace lapidary
