// sampling.h: contracts of argmax, sample, adjust_logits, count_tokens and log_probs: from logits to token ids, and what
// belongs to it.
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
//   Sums are f32 within 256 tokens, or 16 times as many whose sums are added, and double beyond; w and its sums carry the rounding of f32. Results are the same
//   for any number of threads. They may differ between instruction sets where a sum is within rounding of its boundary.
//
// Settings outside their range (temperature and topK finite and ≥ 0, topP and minP in [0, 1]) are ERR_INVALID_ARGUMENT:
// from attributes at once, from `settings` at execution, where the row's token is 0. Rows of logits and of bias may be
// strided; state and settings are contiguous. No input may alias state. No rows: nothing happens. An empty vocabulary
// is ERR_SHAPE_MISMATCH.
//
// adjust_logits   logits f32|bf16 [rows, vocabulary] → out f32 [rows, vocabulary]
//
//   rows      i32 [rows]: the row of counts and of bias that belongs to each row of logits; −1: none, the row is copied
//   settings  f32 [rows, 3]: repetition, presence and frequency penalty of each row
//   counts    i32 [sequences, vocabulary]: bits 0 to 29 how often the token was generated, bit 30 that it is part of the
//             prompt. A negative count is taken for 0
//   bias      f32 [sequences, vocabulary]; −∞ forbids a token
//   mask      i32 [rows, ⌈vocabulary / 32⌉]: the tokens that each row of logits may give, bit id mod 32 of word id / 32; of
//             rows numbered −1 too. Bits past the vocabulary do not count
//
//   With n = generated times, in f32, each step rounded to f32:
//     1. x = x > 0 ? x / repetition : x · repetition      of tokens that were generated or are part of the prompt
//     2. x = x − frequency · n,  then  x − presence       of tokens that were generated
//     3. x = x + bias
//     4. x = −∞                                           of tokens whose bit of mask is 0
//   1 is Hugging Face transformers' RepetitionPenaltyLogitsProcessor (Keskar et al. 2019, arXiv 1909.05858), 2 is what
//   OpenAI documents for its API. Penalties of 1, 0, 0 change nothing, and counts are then not read.
//
//   A row number outside counts or bias is ERR_INDEX_OUT_OF_RANGE, a repetition penalty that is not above 0 and finite,
//   or another that is not finite, ERR_INVALID_ARGUMENT: the row is then copied, and masked. Rows of logits, counts, bias
//   and mask may be strided.
//
// count_tokens    counts[rows[r]][tokens[r]] += 1, in order of r; no output
//
//   tokens    i32 [n]
//   rows      i32 [n], or [1] for all tokens; −1: not counted
//   counts    i32 [sequences, vocabulary], as above; mutated. Full counts (2³⁰ − 1) stay
//   prompt    default false; true: marks the tokens as part of the prompt instead
//
//   Numbers outside counts are ERR_INDEX_OUT_OF_RANGE, and not counted.
//
// log_probs       logits f32|bf16 [rows, vocabulary] → chosen f32 [rows], ids i32 [rows, top], values f32 [rows, top]
//
//   y = x − max x − ln Σ exp(x − max x), the natural logarithm of softmax. chosen is that of tokens[r], i32 [rows]; ids
//   are the `top` (0 to 256, at most the vocabulary) largest of each row, largest first, of equals the lower id, and
//   values theirs.
//
//   NaN logits have probability 0: y is −∞, and ids do not name them; ids past the last other logit are −1. A row whose
//   largest logit is infinite has no softmax: its values are NaN. A token outside the vocabulary is
//   ERR_INDEX_OUT_OF_RANGE, its value NaN.
//
//   exp is within 1 ulp; sums are f32 within 256 tokens and double beyond; the rest is double, rounded once.
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

struct AdjustLogitsInput {
  enum Index { logits, rows, settings, counts, bias, mask, kCount };
};

// A row of `settings`.
struct Penalties {
  float repetition;
  float presence;
  float frequency;
};

static constexpr int32_t kPromptBit = 1 << 30;

struct CountTokensInput {
  enum Index { tokens, rows, counts, kCount };
};

struct CountTokensParams {
  bool prompt;
};

static constexpr int kMaxTop = 256;

struct LogProbsInput {
  enum Index { logits, tokens, kCount };
};

struct LogProbsParams {
  int32_t top;
};

}  // namespace lapidary
