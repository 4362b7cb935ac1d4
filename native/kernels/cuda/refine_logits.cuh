// refine_logits: the largest logits of a row, computed again from a more exact head. Contract: ops/refine_logits.h.
//
// Algorithm: two kernels.
//
//   FindTop      one block per row. Logits become unsigned numbers of the same order, NaN the smallest. The `top`-th largest of the
//                threads' own maxima bounds the result from below, and leaves a few candidates of a whole vocabulary, which are listed in
//                order of ids. Among them the `top`-th largest is found by its digits, eight bits at a time from the highest: a histogram
//                of the digit among those that have the digits found so far (radix selection; Alabi et al. 2012, ACM JEA 17). What is
//                above it stays in the list, and of those equal to it the lowest ids.
//   ExactLogits  one warp per listed logit: a dot product of its row of the table, lanes every 32nd column, one fused chain each
//
// Both lists and logits have the same bits on every run: where an id stands in the list does not matter.
//
// Cost per row: two passes over its logits by one block, which for 262 144 of them is the time of 2 MB out of L2 for one multiprocessor;
// `top` rows of the table. Without the bound, histograms of whole rows would queue at the few digits that logits have.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weights/matrix.cuh"
#include "ops/refine_logits.h"

namespace lapidary::cuda {

struct RefineArguments {
  float* logits;
  int64_t logits_stride;
  int64_t rows, vocabulary, top;
  const unsigned char* hidden;
  int64_t hidden_stride;  // elements
  bool hidden_bf16;
  Matrix table;
  int64_t columns;
  int32_t* ids;     // [rows, vocabulary]
  int32_t* counts;  // [rows]
};

// Unsigned numbers in the order of the floats; −0 equals +0. NaN: 0, below all.
LAPIDARY_DEVICE uint32_t order_of(float x) {
  if (x != x) return 0;
  const uint32_t bits = x == 0 ? 0u : dev::bit_cast<uint32_t>(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct FindTop {
  using Params = RefineArguments;
  static constexpr int kThreads = 1024, kMinBlocks = 1, kWarps = kThreads / dev::kWarp, kDigits = 256;

  struct Shared {
    uint32_t maxima[kThreads];
    uint32_t histogram[kDigits];
    uint32_t digit, wanted, all;
    uint32_t equal[kWarps], above[kWarps];  // how many each warp lists
  };

  // The `equals` largest at `threshold`, and all above it. All numbers: 0.
  struct Cut {
    uint32_t threshold, equals;
  };

  // The cut below the `wanted` largest of `count` keys; `key(i)` is 0 where there is nothing, and may read what other threads of the block
  // wrote before the call: it is called after a barrier.
  template <class Key>
  static LAPIDARY_DEVICE Cut select(Shared& s, int64_t count, uint32_t wanted, const Key& key) {
    const int thread = dev::thread_index();
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = thread; i < kDigits; i += kThreads) dev::store_shared(s.histogram + i, 0u);
      dev::block_barrier();
      for (int64_t i = thread; i < count; i += kThreads) {
        const uint32_t k = key(i);
        const bool candidate = k != 0 && (shift == 24 || (k ^ prefix) >> (shift + 8) == 0);
        if (candidate) dev::atomic_add(s.histogram + (k >> shift & 255), 1u);
      }
      dev::block_barrier();
      if (thread == 0) {
        uint32_t left = wanted;
        int digit = kDigits - 1;
        for (; digit >= 0; --digit) {
          const uint32_t here = dev::load_shared(s.histogram + digit);
          if (here >= left) break;
          left -= here;
        }
        dev::store_shared(&s.digit, uint32_t(digit < 0 ? 0 : digit));
        dev::store_shared(&s.wanted, left);
        dev::store_shared(&s.all, uint32_t(digit < 0));
      }
      dev::block_barrier();
      if (dev::load_shared(&s.all) != 0)
        return {0, 0};  // fewer than `wanted` are numbers: in the first round, or never
      prefix |= dev::load_shared(&s.digit) << shift;
      wanted = dev::load_shared(&s.wanted);
    }
    return {prefix, wanted};
  }

  // Lists id(i) of all keys above the cut, and of the first of those at it; returns how many. The list may be where ids come from: a
  // piece is read before anything of it is written, and never written further on.
  template <class Id>
  static LAPIDARY_DEVICE uint32_t list(Shared& s, const float* row, int64_t count, Cut cut, const Id& id_of,
                                       int32_t* ids) {
    const int warp = dev::warp_index(), lane = dev::lane();
    const uint32_t below = (1u << lane) - 1;
    uint32_t listed = 0, equal_before = 0;
    for (int64_t base = 0; base < count; base += kThreads) {
      const int64_t i = base + dev::thread_index();
      const int32_t id = i < count ? id_of(i) : 0;
      const uint32_t k = i < count ? order_of(dev::load(row + id)) : 0u;
      const uint32_t equal = dev::warp_ballot(k != 0 && k == cut.threshold),
                     above = dev::warp_ballot(k > cut.threshold);
      if (lane == 0) {
        dev::store_shared(s.equal + warp, uint32_t(dev::count_ones(equal)));
        dev::store_shared(s.above + warp, uint32_t(dev::count_ones(above)));
      }
      dev::block_barrier();
      uint32_t equal_at = 0, above_at = 0, equal_total = 0, above_total = 0;
      for (int w = 0; w < kWarps; ++w) {
        const uint32_t e = dev::load_shared(s.equal + w), a = dev::load_shared(s.above + w);
        equal_at += w < warp ? e : 0;
        above_at += w < warp ? a : 0;
        equal_total += e;
        above_total += a;
      }
      dev::block_barrier();
      // Those above come first in this piece's stretch of the list, then the equal ones that are still wanted.
      const uint32_t equal_wanted = cut.equals > equal_before ? cut.equals - equal_before : 0;
      const uint32_t rank = equal_at + uint32_t(dev::count_ones(equal & below));
      if (k > cut.threshold) dev::store(ids + listed + above_at + uint32_t(dev::count_ones(above & below)), id);
      if (k != 0 && k == cut.threshold && rank < equal_wanted) dev::store(ids + listed + above_total + rank, id);
      listed += above_total + (equal_total < equal_wanted ? equal_total : equal_wanted);
      equal_before += equal_total;
    }
    return listed;
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    Shared& s = *reinterpret_cast<Shared*>(shared);
    const int64_t index = dev::block_index_x();
    const float* row = p.logits + index * p.logits_stride;
    int32_t* const ids = p.ids + index * p.vocabulary;
    const uint32_t wanted = uint32_t(p.top < p.vocabulary ? p.top : p.vocabulary);

    Cut bound = {0, 0};
    if (wanted <= uint32_t(kThreads)) {
      uint32_t largest = 0;
      for (int64_t id = dev::thread_index(); id < p.vocabulary; id += kThreads) {
        const uint32_t k = order_of(dev::load(row + id));
        largest = k > largest ? k : largest;
      }
      dev::store_shared(s.maxima + dev::thread_index(), largest);
      bound = select(s, kThreads, wanted, [&](int64_t i) { return dev::load_shared(s.maxima + i); });
      if (bound.threshold > 0) bound = {bound.threshold - 1, 0};  // all from the bound on
    }
    const uint32_t candidates = list(
        s, row, p.vocabulary, bound, [](int64_t i) { return int32_t(i); }, ids);
    const auto listed = [&](int64_t i) { return dev::load(ids + i); };
    const Cut cut = select(s, candidates, wanted, [&](int64_t i) { return order_of(dev::load(row + listed(i))); });
    const uint32_t count = list(s, row, candidates, cut, listed, ids);
    if (dev::thread_index() == 0) dev::store(p.counts + index, int32_t(count));
  }
};

struct ExactLogits {
  using Params = RefineArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t row = dev::block_index_y();
    const int64_t place = int64_t(dev::block_index_x()) * (kThreads / dev::kWarp) + dev::warp_index();
    if (place >= dev::load(p.counts + row)) return;
    const int64_t id = dev::load(p.ids + row * p.vocabulary + place);
    float sum = 0;
    for (int64_t k = dev::lane(); k < p.columns; k += dev::kWarp) {
      const int64_t at = row * p.hidden_stride + k;
      const float h = p.hidden_bf16 ? dev::to_float(dev::load(reinterpret_cast<const dev::Bf16*>(p.hidden) + at))
                                    : dev::load(reinterpret_cast<const float*>(p.hidden) + at);
      sum = dev::fma(h, weight_at(p.table, id, k), sum);
    }
    for (int mask = 16; mask; mask /= 2) sum = sum + dev::shuffle_xor(sum, mask);
    if (dev::lane() == 0) dev::store(p.logits + row * p.logits_stride + id, sum);
  }
};

}  // namespace lapidary::cuda
