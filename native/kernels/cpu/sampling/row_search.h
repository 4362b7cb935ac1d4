// sampling/row_search.h: top-k of more tokens than there are blocks, and top-p without top-k: cutoffs among all tokens of a
// row, found by all threads together. Include after simd/<isa>.h.
//
// The row's x and weights lie in scratch, in order of id. As in candidates.h, the cutoff lies between two keys, and a pass
// over the row sums what lies at or above each of eight thresholds between them; here the blocks are shared out over the
// team, and the thread that owns the row adds up what they found and narrows:
//
//     all threads    sums of each group of blocks at eight thresholds      ─► pass_sums [rows of the wave, groups, 8]
//     the owner      which ninth holds the cutoff; few tokens left in it: candidates.h finds it among these
//     …
//     all threads    weights of what the cutoff drops become 0, blocks are summed again
//
// Thresholds are evenly spaced in x for four passes, which is what distributions of logits ask for, and evenly spaced in
// keys from then on, which ends after at most eleven more, whatever the numbers. Three passes are usual. A pass over
// 262,144 tokens reads 2 MiB, half of it by each of two threads.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/candidates.h"
#include "kernels/cpu/sampling/logit_rows.h"
#include "kernels/cpu/sampling/waves.h"

namespace lapidary {
namespace {

enum class Stage : uint8_t {
  none,    // the row is not searched
  start,   // its weights are there
  search,  // a pass is due, or done
  apply,   // a cutoff was found: drop what is below it
  done,
};

struct RowSearch {
  Stage stage;
  bool counting;  // sums are of ones (top-k), not of weights
  int passes;
  uint32_t low, high;  // keys: the cutoff is in [low, high)
  double goal;
  double at_low, above;  // what lies at or above `low`, and `high`
  float thresholds[kThresholds];
  uint32_t keys[kThresholds + 2];
  Cutoff cutoff;
  Weigher weigher;
  int64_t top_k;
  float top_p, min_p;
};

// A row's arrays; `x` is NaN and `weight` 0 past the vocabulary, to a whole vector.
struct SearchedRow {
  const float* x;
  float* weight;
  const float* block_max;
  int64_t vocabulary;
  double* block_sum;
  float* pass_sums;  // [groups of blocks, kThresholds]
  int32_t* equals;   // [blocks]

  LAPIDARY_MEMBER_INLINE int64_t end_of(int64_t block) const {
    const int64_t end = (block + 1) * kBlock;
    return end < vocabulary ? end : vocabulary;
  }
};

template <DType kDtype>
void fill_search_block(const LogitRow<kDtype>& row, const Weigher& weigher, int64_t block, float* x, float* weight) {
  const int64_t begin = block * kBlock;
  const int64_t end = begin + kBlock < row.vocabulary ? begin + kBlock : row.vocabulary;
  const F32 lowest = simd::set1(-kInfinity);
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_at(i, end);
    F32 v = row.load(i, n);
    if (n < kLanes) v = simd::select(simd::less(simd::iota(), simd::set1_i32(n)), v, simd::set1(__builtin_nanf("")));
    simd::store(x + i, v);
    simd::store(weight + i, weigher.weights(simd::max(v, lowest)));  // NaN becomes −∞
  }
}

// A pass adds up 16 blocks before it sums across lanes: that costs as much as the rest of a block, eight times.
constexpr int64_t kGroupBlocks = 16;

inline int64_t group_count(int64_t blocks) { return (blocks + kGroupBlocks - 1) / kGroupBlocks; }

// One group's part of a pass.
inline void pass_group(const RowSearch& search, const SearchedRow& row, int64_t blocks, int64_t group) {
  F32 total[kThresholds], thresholds[kThresholds];
  for (int j = 0; j < kThresholds; ++j) {
    total[j] = simd::zero();
    thresholds[j] = simd::set1(search.thresholds[j]);
  }
  const F32 one = simd::set1(1);
  const int64_t last = (group + 1) * kGroupBlocks < blocks ? (group + 1) * kGroupBlocks : blocks;
  for (int64_t block = group * kGroupBlocks; block < last; ++block) {
    if (row.block_max[block] < search.thresholds[0]) continue;
    F32 partial[kThresholds];
    for (int j = 0; j < kThresholds; ++j) partial[j] = simd::zero();
    for (int64_t i = block * kBlock; i < row.end_of(block); i += kLanes) {
      const F32 x = simd::load(row.x + i), weight = search.counting ? one : simd::load(row.weight + i);
      for (int j = 0; j < kThresholds; ++j) {
        const simd::Mask from = simd::less_equal(thresholds[j], x);
        partial[j] = simd::add(partial[j], simd::select(from, weight, simd::zero()));
      }
    }
    for (int j = 0; j < kThresholds; ++j) total[j] = simd::add(total[j], partial[j]);
  }
  for (int j = 0; j < kThresholds; ++j) row.pass_sums[group * kThresholds + j] = simd::reduce_add(total[j]);
}

// One block's part of applying a cutoff: weights below it, or below min-p, become 0; a block that is below it throughout
// only has its sum changed, for nothing looks into it again. `equals` gets the number of tokens that equal the cutoff, for the
// owner.
inline void apply_block(const RowSearch& search, float least, const SearchedRow& row, int64_t block) {
  row.equals[block] = 0;
  if (row.block_max[block] < search.cutoff.x) {
    row.block_sum[block] = 0;
    return;
  }
  const F32 cutoff = simd::set1(search.cutoff.x), one = simd::set1(1);
  for (int64_t i = block * kBlock; i < row.end_of(block); i += kLanes) {
    const F32 x = simd::load(row.x + i);
    simd::store(row.weight + i, simd::select(simd::less(x, cutoff), simd::zero(), simd::load(row.weight + i)));
    const simd::Mask equal = simd::mask_and(simd::less_equal(cutoff, x), simd::less_equal(x, cutoff));
    if (simd::any(equal)) row.equals[block] += int32_t(simd::reduce_add(simd::select(equal, one, simd::zero())));
  }
  sum_weights(row.weight + block * kBlock, row.end_of(block) - block * kBlock, least, row.block_sum + block);
}

inline void choose_thresholds(RowSearch& search) {
  constexpr int kEvenPasses = 4;
  const float low = from_ordered_key(search.low), high = from_ordered_key(search.high);
  uint32_t* keys = search.keys;
  keys[0] = search.low;
  keys[kThresholds + 1] = search.high;
  bool inside = search.passes < kEvenPasses;
  for (int j = 1; inside && j <= kThresholds; ++j) {
    // Without a lower bound: 32, 16, … 1/4 below the largest, which is just below `high`.
    const float x = low > -kInfinity ? low + (high - low) * (float(j) / (kThresholds + 1))
                                     : high - __builtin_bit_cast(float, uint32_t(127 + 6 - j) << 23);
    keys[j] = ordered_key(x);
    inside = x == x && keys[j] > keys[j - 1] && keys[j] < search.high;
  }
  for (int j = 1; !inside && j <= kThresholds; ++j)
    keys[j] = search.low + uint32_t(uint64_t(search.high - search.low) * uint64_t(j) / (kThresholds + 1));
  for (int j = 0; j < kThresholds; ++j) search.thresholds[j] = from_ordered_key(keys[j + 1]);
  ++search.passes;
}

// `total`: the sum of everything at or above `lowest`.
inline void begin_search(RowSearch& search, bool counting, float lowest, float highest, double total, double goal) {
  search.counting = counting;
  search.passes = 0;
  search.low = ordered_key(lowest);
  search.high = ordered_key(highest) + 1;
  search.goal = goal;
  search.at_low = total;
  search.above = 0;
  search.stage = Stage::search;
  choose_thresholds(search);
}

inline void found(RowSearch& search, Cutoff cutoff) {
  search.cutoff = cutoff;
  search.stage = Stage::apply;
}

// Copies the tokens in [low, high), in order of id; −1 where they are more than `capacity`. The copies have room for kLanes
// more.
inline int64_t extract_between(const SearchedRow& row, int64_t blocks, float low, float high, int64_t capacity,
                               float* x, float* weight) {
  const F32 lows = simd::set1(low), highs = simd::set1(high);
  int64_t count = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (row.block_max[block] < low) continue;
    for (int64_t i = block * kBlock; i < row.end_of(block); i += kLanes) {
      const F32 lanes = simd::load(row.x + i);
      if (!simd::any(simd::mask_and(simd::less_equal(lows, lanes), simd::less(lanes, highs)))) continue;
      for (int lane = 0; lane < kLanes; ++lane) {
        x[count] = row.x[i + lane];
        weight[count] = row.weight[i + lane];
        count += int(row.x[i + lane] >= low) & int(row.x[i + lane] < high);
      }
      if (count > capacity) return -1;
    }
  }
  return count;
}

// The owner's part of a pass.
inline void narrow(RowSearch& search, const SearchedRow& row, int64_t blocks) {
  double sums[kThresholds] = {};
  for (int64_t group = 0; group < group_count(blocks); ++group) {
    for (int j = 0; j < kThresholds; ++j) sums[j] += double(row.pass_sums[group * kThresholds + j]);
  }
  int part = kThresholds;
  while (part > 0 && sums[part - 1] < search.goal) --part;
  // Tokens in all: they are kept from here, and nothing is left to tell apart.
  if (part > 0 && search.counting && sums[part - 1] == search.goal)
    return found(search, {search.thresholds[part - 1], INT64_MAX});
  search.low = search.keys[part];
  search.high = search.keys[part + 1];
  if (part > 0) search.at_low = sums[part - 1];
  if (part < kThresholds) search.above = sums[part];

  const float low = from_ordered_key(search.low);
  double least = 1;  // of what is between: how many there are at most
  if (!search.counting) {
    float lanes[kLanes];
    simd::store(lanes, search.weigher.weights(simd::set1(low)));
    least = double(lanes[0]);
  }
  constexpr int64_t kFew = 1024;
  if (search.at_low - search.above <= least * kFew) {
    float few_x[kFew + kLanes], few_weight[kFew + kLanes];
    const int64_t count = extract_between(row, blocks, low, from_ordered_key(search.high), kFew, few_x, few_weight);
    if (count > 0) {
      const Numbers few = {few_x, search.counting ? nullptr : few_weight, count};
      return found(search, find_cutoff(few, low, from_ordered_key(search.high - 1), search.goal - search.above));
    }
  }
  if (search.high - search.low <= 1) {
    const double wanted = least > 0 ? (search.goal - search.above) / least : kInfinity;
    return found(search, {low, wanted < double(row.vocabulary) ? (wanted > 1 ? int64_t(__builtin_ceil(wanted)) : 1)
                                                               : INT64_MAX});
  }
  choose_thresholds(search);
}

// Drops the tokens that equal the cutoff but for the first `equals`, in order of id.
inline void drop_equals(const RowSearch& search, float least, const SearchedRow& row, int64_t blocks) {
  int64_t left = search.cutoff.equals;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t here = row.equals[block];
    if (here <= left) {
      left -= here;
      continue;
    }
    for (int64_t i = block * kBlock; i < row.end_of(block); ++i) {
      if (row.x[i] == search.cutoff.x && left-- <= 0) row.weight[i] = 0;
    }
    left = 0;
    sum_weights(row.weight + block * kBlock, row.end_of(block) - block * kBlock, least, row.block_sum + block);
  }
}

// Min-p counts for the last cutoff only: before it, weights are still to be summed for top-p.
inline float least_weight(const RowSearch& search) { return search.counting && search.top_p < 1 ? 0 : search.min_p; }

// The owner's step between two things that all threads do.
inline void advance(RowSearch& search, const SearchedRow& row, int64_t blocks) {
  if (search.stage == Stage::search) return narrow(search, row, blocks);
  if (search.stage != Stage::start && search.stage != Stage::apply) return;
  const bool first = search.stage == Stage::start;
  if (first && search.top_k > 0) {
    return begin_search(search, true, -kInfinity, search.weigher.max, double(row.vocabulary), double(search.top_k));
  }
  if (!first) {
    drop_equals(search, least_weight(search), row, blocks);
    if (!search.counting || search.top_p >= 1) {
      search.stage = Stage::done;
      return;
    }
  }
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += row.block_sum[block];
  const float lowest =
      first ? bound_of_weight(search.weigher, (1 - double(search.top_p)) * total / double(row.vocabulary))
            : search.cutoff.x;
  begin_search(search, false, lowest, search.weigher.max, total, double(search.top_p) * total);
}

// Finds and applies the cutoffs of the wave's rows. Every thread comes here after a barrier, with the rows' weights and
// block sums filled in, and leaves when all is done.
template <class RowOf>
void search_rows(Team& team, int64_t rows, int64_t blocks, RowSearch* searches, const RowOf& row_of) {
  for (;;) {
    if (team.thread < rows) advance(searches[team.thread], row_of(team.thread), blocks);
    team_barrier(team);
    bool busy = false;
    for (int64_t row = 0; row < rows; ++row) {
      busy |= searches[row].stage == Stage::search || searches[row].stage == Stage::apply;
    }
    if (!busy) return;
    for_blocks(team, rows, group_count(blocks), [&](int64_t row, int64_t group) {
      const RowSearch& search = searches[row];
      const SearchedRow searched = row_of(row);
      if (search.stage == Stage::search) pass_group(search, searched, blocks, group);
      if (search.stage != Stage::apply) return;
      const int64_t last = (group + 1) * kGroupBlocks < blocks ? (group + 1) * kGroupBlocks : blocks;
      for (int64_t block = group * kGroupBlocks; block < last; ++block)
        apply_block(search, least_weight(search), searched, block);
    });
    team_barrier(team);
  }
}

}  // namespace
}  // namespace lapidary
