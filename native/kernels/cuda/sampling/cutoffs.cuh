// sampling/cutoffs.cuh: the last token that top-k and top-p keep, found without a sort.
//
// As kernels/cpu/sampling/candidates.h: floats map to integers (keys) of the same order, and a cutoff's key is searched between two
// keys, nine parts at a time. A pass sums what lies at or above each of eight thresholds; the part in which the sum reaches the goal
// goes on. Four passes space thresholds evenly in x, which is what logits ask for, then at most eleven evenly in keys.
//
// What is searched is a source: a row, without the chunks whose maximum lies below a bound, or a list in shared memory of the few
// that lie above it. Either is in ascending order of id, in chunks of 256.
#pragma once
#include "kernels/cuda/sampling/logit_rows.cuh"

namespace lapidary::cuda {

static constexpr int kThresholds = 8;
static constexpr int kFew = 2048;  // of the list in shared memory
static constexpr uint64_t kAllEquals = ~uint64_t(0);

// Keep what is greater than `x`, and of what equals it the first `equals`, in order of id.
struct Cutoff {
  float x;
  uint64_t equals;
};

struct SearchScratch {
  uint64_t sums[kMostWarps][kThresholds];
  uint64_t words[kMostWarps];
  float floats[kMostWarps];
  uint32_t ids[kMostWarps];
  uint64_t shared_words[4];  // one thread's answers to all
  float few_x[kFew];
  int32_t few_id[kFew];
};

struct RowSource {
  LogitRow row;
  const float* maxima;
  float bound;
  LAPIDARY_DEVICE int64_t count() const { return row.vocabulary; }
  LAPIDARY_DEVICE bool skips(int64_t chunk) const { return dev::load(maxima + chunk) < bound; }
  LAPIDARY_DEVICE float x(int64_t i) const { return row.at(i); }
  LAPIDARY_DEVICE int32_t id(int64_t i) const { return int32_t(i); }
};

struct ListSource {
  const SearchScratch* scratch;
  int64_t length;
  LAPIDARY_DEVICE int64_t count() const { return length; }
  LAPIDARY_DEVICE bool skips(int64_t) const { return false; }
  LAPIDARY_DEVICE float x(int64_t i) const { return dev::load_shared(scratch->few_x + i); }
  LAPIDARY_DEVICE int32_t id(int64_t i) const { return dev::load_shared(scratch->few_id + i); }
};

// Numbers as a source: the maxima themselves.
struct MaximaSource {
  const float* maxima;
  int64_t chunks;
  LAPIDARY_DEVICE int64_t count() const { return chunks; }
  LAPIDARY_DEVICE bool skips(int64_t) const { return false; }
  LAPIDARY_DEVICE float x(int64_t i) const { return dev::load(maxima + i); }
};

// Calls each(x) for this thread's share of the source.
template <class Source, class Each>
LAPIDARY_DEVICE void for_share(const Source& source, const Each& each) {
  const int64_t count = source.count();
  for (int64_t c = dev::warp_index(); c * kChunk < count; c += dev::block_threads() / dev::kWarp) {
    if (source.skips(c)) continue;
    for (int64_t i = c * kChunk + dev::lane(); i < (c + 1) * kChunk && i < count; i += dev::kWarp) each(source.x(i));
  }
}

LAPIDARY_DEVICE void choose_thresholds(uint32_t low, uint32_t high, int pass, uint32_t (&keys)[kThresholds + 2]) {
  constexpr int kEvenPasses = 4;
  const float from = from_ordered_key(low), to = from_ordered_key(high);
  keys[0] = low;
  keys[kThresholds + 1] = high;
  bool inside = pass < kEvenPasses;
#pragma unroll
  for (int j = 1; j <= kThresholds; ++j) {
    if (!inside) continue;
    // Without a lower bound: 32, 16, … 1/4 below the largest, which is just below `high`.
    const float x = from > -kLogitInfinity ? from + (to - from) * (float(j) / (kThresholds + 1))
                                           : to - dev::bit_cast<float>(uint32_t(127 + 6 - j) << 23);
    keys[j] = ordered_key(x + 0.f);
    inside = x == x && keys[j] > keys[j - 1] && keys[j] < high;
  }
#pragma unroll
  for (int j = 1; j <= kThresholds; ++j)
    if (!inside) keys[j] = low + uint32_t(uint64_t(high - low) * uint64_t(j) / (kThresholds + 1));
}

// The cutoff of the shortest prefix, in descending order of x, whose amounts sum to at least `goal` > 0; amount(x) is an integer. No
// number exceeds `highest`; the cutoff is not below `lowest`, and reaches the goal there if anywhere. `enough`: any cutoff will do whose
// prefix sums to at most that.
template <class Source, class Amount>
LAPIDARY_DEVICE Cutoff find_cutoff(const Source& source, float lowest, float highest, uint64_t goal, uint64_t enough,
                                   SearchScratch& scratch, const Amount& amount) {
  uint32_t low = ordered_key(lowest), high = ordered_key(highest) + 1;
  uint64_t above = 0;  // the sum of what is at or above `high`
  for (int pass = 0; high - low > 1; ++pass) {
    uint32_t keys[kThresholds + 2];
    choose_thresholds(low, high, pass, keys);
    float thresholds[kThresholds];
    uint64_t sums[kThresholds];
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      thresholds[j] = from_ordered_key(keys[j + 1]);
      sums[j] = 0;
    }
    for_share(source, [&](float x) {
      if (!(x >= thresholds[0])) return;
      const uint64_t a = amount(x);
#pragma unroll
      for (int j = 0; j < kThresholds; ++j) sums[j] += x >= thresholds[j] ? a : 0;
    });
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      for (int mask = 16; mask > 0; mask /= 2) sums[j] += dev::shuffle_xor(sums[j], mask);
      if (dev::lane() == 0) dev::store_shared(&scratch.sums[dev::warp_index()][j], sums[j]);
    }
    dev::block_barrier();
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      sums[j] = 0;
      for (int w = 0; w < dev::block_threads() / dev::kWarp; ++w) sums[j] += dev::load_shared(&scratch.sums[w][j]);
    }
    dev::block_barrier();
    // The last threshold whose sum reaches the goal. By constant indices, so that the tables stay in registers.
    int part = 0;
    uint64_t reached = 0;
    low = keys[0];
    high = keys[1];
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) {
      if (sums[j] < goal) continue;
      part = j + 1;
      reached = sums[j];
      low = keys[j + 1];
      high = keys[j + 2];
    }
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) above = j == part ? sums[j] : above;
    if (part > 0 && reached <= enough) return {from_ordered_key(low), kAllEquals};
  }
  const float x = from_ordered_key(low);
  const uint64_t each = amount(x), left = goal > above ? goal - above : 1;
  return {x, each == 0 ? kAllEquals : (left + each - 1) / each};
}

// ── in order of id ──────────────────────────────────────────────────────────────────────────────────────────────────
// What is kept is told by a Cutoff, and by `keeps(x)` beside it.

// Tables of a row in global memory, one word per chunk.
struct ChunkTables {
  uint64_t* sums;
  uint32_t* counts;
};

// Turns counts of chunks into how many lie before each. Returns how many there are. All threads call it.
LAPIDARY_DEVICE uint64_t count_before(uint32_t* counts, int64_t chunks, SearchScratch& scratch) {
  dev::block_barrier();
  if (dev::warp_index() == 0) {
    uint64_t before = 0;
    for (int64_t base = 0; base < chunks; base += dev::kWarp) {
      const int64_t c = base + dev::lane();
      const uint32_t count = c < chunks ? dev::load(counts + c) : 0;
      const uint32_t up_to = warp_prefix(count);
      if (c < chunks) dev::store(counts + c, uint32_t(before) + up_to - count);
      before += dev::shuffle(up_to, dev::kWarp - 1);
    }
    if (dev::lane() == 0) dev::store_shared(scratch.shared_words, before);
  }
  dev::block_barrier();
  return dev::load_shared(scratch.shared_words);
}

LAPIDARY_DEVICE uint32_t lanes_below() { return (1u << dev::lane()) - 1; }

// Counts what holds(x), by chunks, and how many of those lie before each chunk.
template <class Source, class Holds>
LAPIDARY_DEVICE uint64_t count_chunks(const Source& source, uint32_t* counts, SearchScratch& scratch,
                                      const Holds& holds) {
  const int64_t count = source.count();
  for (int64_t c = dev::warp_index(); c * kChunk < count; c += dev::block_threads() / dev::kWarp) {
    uint32_t here = 0;
    if (!source.skips(c)) {
      for (int i = 0; i < kChunk; i += dev::kWarp) {
        const int64_t at = c * kChunk + i + dev::lane();
        here += uint32_t(dev::count_ones(dev::warp_ballot(at < count && holds(source.x(at)))));
      }
    }
    if (dev::lane() == 0) dev::store(counts + c, here);
  }
  return count_before(counts, chunk_count(count), scratch);
}

// Calls each(x, id, rank) of what holds(x) in this thread's share: rank among them all, in order of id. After count_chunks.
template <class Source, class Holds, class Each>
LAPIDARY_DEVICE void for_ranked(const Source& source, const uint32_t* before, const Holds& holds, const Each& each) {
  const int64_t count = source.count();
  for (int64_t c = dev::warp_index(); c * kChunk < count; c += dev::block_threads() / dev::kWarp) {
    if (source.skips(c)) continue;
    uint32_t rank = dev::load(before + c);
    for (int i = 0; i < kChunk; i += dev::kWarp) {
      const int64_t at = c * kChunk + i + dev::lane();
      const float x = at < count ? source.x(at) : 0.f;
      const bool held = at < count && holds(x);
      const uint32_t lanes = dev::warp_ballot(held);
      if (held) each(x, source.id(at), rank + uint32_t(dev::count_ones(lanes & lanes_below())));
      rank += uint32_t(dev::count_ones(lanes));
    }
  }
}

// Copies what lies at or above `bound` into the list, where it is few. Returns how many there are.
LAPIDARY_DEVICE uint64_t gather_few(const RowSource& source, uint32_t* counts, SearchScratch& scratch) {
  const auto holds = [&](float x) { return x >= source.bound; };
  const uint64_t count = count_chunks(source, counts, scratch, holds);
  if (count > kFew) return count;
  for_ranked(source, counts, holds, [&](float x, int32_t id, uint32_t rank) {
    dev::store_shared(scratch.few_x + rank, x);
    dev::store_shared(scratch.few_id + rank, id);
  });
  dev::block_barrier();
  return count;
}

// A lower bound of the k-th largest, for k up to the number of chunks: each of the k largest maxima is an element.
LAPIDARY_DEVICE float bound_of_top(const float* maxima, int64_t chunks, float largest, uint64_t k,
                                   SearchScratch& scratch) {
  if (k > uint64_t(chunks)) return -kLogitInfinity;
  return find_cutoff(MaximaSource{maxima, chunks}, -kLogitInfinity, largest, k, k + k / 4, scratch,
                     [](float) { return uint64_t(1); })
      .x;
}

// The cutoff of the k largest.
template <class Source>
LAPIDARY_DEVICE Cutoff top_k_cutoff(const Source& source, float bound, float largest, uint64_t k,
                                    SearchScratch& scratch) {
  return find_cutoff(source, bound, largest, k, k, scratch, [](float) { return uint64_t(1); });
}

}  // namespace lapidary::cuda
