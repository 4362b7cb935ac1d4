// attention/visible_blocks.cuh: the one half-open interval of keys that a query row sees (every mask is one, ops/flash_attention.h),
// and what follows from it for a tile of rows: which blocks of keys are read, and which need no mask.
//
//        keys  0 ─────────────────────────────────────────────────────────────►
//   row 0            [ lo ········································ hi )
//   row 1                 [ lo ·········································· hi )
//   …
//                begin                                                   end        blocks outside are not touched
//                         inner_begin                    inner_end                   blocks inside need no mask
#pragma once
#include "kernels/cuda/attention/problem.cuh"

namespace lapidary::cuda::attention {

struct Interval {
  int begin, end;  // empty ones are {0, 0}
};

// What query `token` of the sequence sees.
LAPIDARY_DEVICE Interval visible_keys(const Problem& p, const Sequence& s, int token, bool reports) {
  int64_t begin = 0, end = s.keys;
  if (p.key_low) {
    begin = load(p.key_low + s.token_begin + token);
    end = load(p.key_high + s.token_begin + token);
    if (begin < 0 || begin > s.keys || end < 0 || end > s.keys) {
      if (reports) p.errors.report(kIntervals, begin, end);
      return {0, 0};
    }
  } else if (p.causal) {
    end = int64_t(s.keys) - s.tokens + token + 1;
    if (p.window > 0 && end > p.window) begin = end - p.window;
  }
  if (begin >= end) return {0, 0};
  if (begin < s.first_held) {
    if (reports) p.errors.report(kRing, begin, s.first_held);
    return {0, 0};
  }
  return {int(begin), int(end)};
}

struct VisibleBlocks {
  int begin, end;              // the smallest interval that holds those of all rows; {0, 0} where they are empty
  int inner_begin, inner_end;  // keys that every row sees
};

// A block's rows and what they see: kept in shared memory and read again where it is needed, for S and O leave no registers for it.
struct RowState {
  RowBlock block;
  VisibleBlocks seen;
};

// Fills low[kRows] and high[kRows] in shared memory; rows past the block's see all, for what they compute is not stored. The caller
// puts a barrier behind it.
template <int kRows>
LAPIDARY_DEVICE void fill_intervals(const Problem& p, const RowBlock& block, int* low, int* high, bool reports) {
  for (int row = thread_index(); row < kRows; row += block_threads()) {
    Interval seen = {0, INT32_MAX};
    if (row < block.rows) seen = visible_keys(p, block.sequence, token_of(p, block, row), reports);
    store_shared(low + row, seen.begin);
    store_shared(high + row, seen.end);
  }
}

// After the barrier. Every warp finds the same for itself.
template <int kRows>
LAPIDARY_DEVICE VisibleBlocks find_blocks(const RowBlock& block, const int* low, const int* high) {
  VisibleBlocks all = {INT32_MAX, 0, 0, INT32_MAX};
  for (int row = lane(); row < block.rows; row += kWarp) {
    const int begin = load_shared(low + row), end = load_shared(high + row);
    if (begin >= end) {
      all.inner_begin = INT32_MAX;
      continue;
    }
    all.begin = begin < all.begin ? begin : all.begin;
    all.end = end > all.end ? end : all.end;
    all.inner_begin = begin > all.inner_begin ? begin : all.inner_begin;
    all.inner_end = end < all.inner_end ? end : all.inner_end;
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    const int begin = shuffle_xor(all.begin, mask), end = shuffle_xor(all.end, mask);
    const int inner_begin = shuffle_xor(all.inner_begin, mask), inner_end = shuffle_xor(all.inner_end, mask);
    all.begin = begin < all.begin ? begin : all.begin;
    all.end = end > all.end ? end : all.end;
    all.inner_begin = inner_begin > all.inner_begin ? inner_begin : all.inner_begin;
    all.inner_end = inner_end < all.inner_end ? inner_end : all.inner_end;
  }
  if (all.begin >= all.end) all.begin = all.end = 0;
  return all;
}

}  // namespace lapidary::cuda::attention
