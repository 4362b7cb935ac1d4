// embedding.h: contract of embedding.
//
//   out[t, k] = scale · table[ids[t], k]      multiplied in f32, then rounded to outputDtype
//
//   ids    i32 [tokens], contiguous. −1 is no token: a row of zeros, to which something else is added (an image's soft
//          tokens). Any other id outside 0 … vocabulary−1 gives a row of zeros and the stream's ERR_INDEX_OUT_OF_RANGE.
//   table  [vocabulary, hiddenSize] in any stored dtype (plain rows may be strided), or packed by pack_weights
//   scale  default 1. Gemma multiplies by √hiddenSize rounded to the checkpoint's dtype; the tensor scale of a stored
//          sfp8 table belongs in here too
//   out    f32 or bf16 [tokens, hiddenSize]
// Reads each row once (packed: the row's words, one per cache line) and writes it once. No tokens: an empty result.
#pragma once
#include "ops/call.h"

namespace lapidary {

static constexpr int32_t kNoToken = -1;

struct EmbeddingParams {
  float scale;
};

}  // namespace lapidary
