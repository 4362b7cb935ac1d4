// flash_attention.h: contract of flash_attention: softmax(scores) · V over the keys that each query row sees.
//
//   s[i, j] = scale · Σ_d q[i, d] · k[j, d]          where softcap > 0:  s = softcap · tanh(s / softcap)
//   out[i]  = Σ_j exp(s[i, j]) · v[j] / Σ_j exp(s[i, j])       over the keys j of row i's visible interval [lo, hi)
//
//   q  f32|bf16 [tokens, queryHeads, headDim]    query head h uses kv head h / (queryHeads / kvHeads)
//   k, v  f32|bf16|f16|i8, one dtype and shape. Either
//     plain   [keys, kvHeads, headDim], or
//     paged   [pages, kvHeads, pageTokens, headDim] with a pageTable: logical key j of sequence s is slot
//             j mod pageTokens of page pageTable[s][(j / pageTokens) mod tableWidth]. A ring is simply a narrow table.
//   queryStarts  i32 [sequences + 1]: tokens queryStarts[s] … queryStarts[s + 1] − 1 are the queries of sequence s.
//                Absent: one sequence. Tokens before the first and after the last start belong to no sequence; their
//                rows are zeros.
//   keyStarts    i32 [sequences + 1], plain only: the same for keys. Absent: one sequence, all keys.
//   pageTable    i32 [sequences, tableWidth], paged only. Entries that no visible key needs do not matter.
//   keyLengths   i32 [sequences]: how many keys each sequence has so far, absolute.
//                Paged: required. May exceed what a ring holds; at most 2³¹ − 1024.
//                Plain: optional, at most what keyStarts allots (a cache with room to grow).
//   keyLow, keyHigh  i32 [tokens], together: the visible interval of each token in logical keys of its sequence,
//                0 ≤ lo, hi ≤ keyLength; lo ≥ hi sees nothing. Overrides causal and window.
//   kScales, vScales  f32, i8 only: element = byte · scale. [keys, kvHeads] or [pages, kvHeads, pageTokens], finite
//   output       out [tokens, queryHeads, headDim]
//
//   scale     default 0: 1 / √headDim. Finite
//   causal    default true. Query i of n stands at position p = keyLength − n + i and sees [0, p + 1).
//             Not causal: [0, keyLength)
//   window    default 0: no limit. Otherwise causal rows see their last `window` keys, their own included:
//             [p + 1 − window, p + 1). Only with causal; other windows are a matter of keyLow and keyHigh
//   softcap   default 0: none
//   outputDtype  same (as q) | f32 | bf16
//
// headDim is a multiple of 8 from 8 to 512; queryHeads a multiple of kvHeads. q, k and v may be views with free outer
// strides, their last dimension contiguous; the rest is contiguous. Rows that see no key are zeros, as are all rows
// where there are no keys. Keys outside a row's interval never enter it, whatever they hold, with one exception: a NaN
// or infinity in v, or in a scale, between the first and the last key that queries of the same sequence see may make
// the row NaN. Keys before and after those are not read.
//
// Accuracy. Sums are f32. Bytes of i8 are exact in every product; their scales are applied to scores and weights.
// Kernels are of two kinds:
//   f32   every ISA, and CUDA; always where k and v are f32 or f16. q, k and v widened to f32, products fused into sums; the
//         exponential and tanh within 2 ulp.
//   bf16  avx512_bf16, amx and CUDA, where k and v are bf16 or i8. q rounded to bf16; products exact; weights within 2⁻¹³,
//         then rounded to bf16, while their sum is of unrounded ones. tanh of a soft cap within 4.3e-6 relative, from
//         5.5 on 3.8e-5 absolute; on CUDA within 2^-10.9 relative (tanh.approx.f32).
// Scores of large magnitude lose what their exponents round: a score of 100 has an error of 100 · 2⁻²⁴ in any f32.
// A result does not depend on the number of threads, nor on the other sequences of the batch.
//
// Bad device data is ERR_INDEX_OUT_OF_RANGE, and these rows become zeros:
//   all           starts that are not monotone or not inside
//   a sequence's  a keyLength that is negative, beyond the plain keys or above 2³¹ − 1024
//   a row         an interval outside [0, keyLength], or reaching before the last tableWidth · pageTokens keys of a ring;
//                 a key it sees is on a page whose number is outside the cache
//
// Cost: 4 · headDim operations per visible (query, key) pair. Bytes: q and out once, k and v once.
#pragma once
#include "ops/call.h"

namespace lapidary {

static constexpr int kAttentionMaxHeadDim = 512;

struct FlashAttentionInput {
  enum Index {
    q,
    k,
    v,
    query_starts,
    key_starts,
    page_table,
    key_lengths,
    key_low,
    key_high,
    k_scales,
    v_scales,
    kCount
  };
};

struct FlashAttentionParams {
  float scale;
  float softcap;   // 0: none
  int32_t window;  // 0: no limit
  int32_t sequences;
  bool causal;
};

}  // namespace lapidary
