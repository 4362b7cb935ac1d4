// refine_logits.h: contract of refine_logits: the largest logits of a row, computed again from a more exact head.
//
//   logits[r, v] = Σ_k hidden[r, k] · table[v, k]    for the `top` largest logits[r, ·]; the others stay
//
//   logits  f32 [rows, vocabulary]; rows may be strided. Mutated
//   hidden  f32 or bf16 [rows, hiddenSize]; rows may be strided. Must not overlap logits
//   table   [vocabulary, hiddenSize] in any stored dtype (plain rows may be strided), or packed by pack_weights
//   top     1 … 2³¹ − 1. Of equal logits the lower ids; NaN is never among them
//
// What it is for: decoding reads the whole output matrix for every token. A head in four bits finds the tokens that
// matter in half the bytes of an eight-bit one; the rows of those tokens then come from the matrix as stored, which may
// be a mapped file of which nothing else is read.
//
// Accuracy: weights widened to f32 exactly (as dequantize), products fused into f32 sums, one per SIMD lane. The result
// of a row depends neither on the other rows nor on the number of threads.
//
// Cost per row: a pass over the logits, and `top` rows of the table.
#pragma once
#include "ops/call.h"

namespace lapidary {

struct RefineLogitsInput {
  enum Index { logits, hidden, table, kCount };
};

struct RefineLogitsParams {
  int64_t top;
};

}  // namespace lapidary
