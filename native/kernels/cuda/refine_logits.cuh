// refine_logits: the largest logits of a row, computed again from a more exact head. Contract: ops/refine_logits.h.
//
// Algorithm: two kernels.
//
//   FindTop      one block per row. Logits become unsigned numbers of the same order, NaN the smallest; the `top`-th largest is found by
//                its digits, eight bits at a time from the highest: a histogram of the digit among those that have the digits found so far
//                (radix selection; Alabi et al. 2012, ACM JEA 17). Then all above it are listed, and of those equal to it the lowest ids,
//                in one pass in order of ids.
//   ExactLogits  one warp per listed logit: a dot product of its row of the table, lanes every 32nd column, one fused chain each
//
// Both lists and logits have the same bits on every run: where an id stands in the list does not matter.
//
// Cost per row: five passes over its logits by one block, which for 262 144 of them is the time of about 5 MB out of L2 for one
// multiprocessor; `top` rows of the table.
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
  int32_t* ids;     // [rows, capacity]
  int32_t* counts;  // [rows]
  int64_t capacity;
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
  // Histogram, then the digit found with what is above it, then per warp how many it lists.
  static constexpr size_t kSharedBytes = (kDigits + 4 + 2 * kWarps) * sizeof(uint32_t);

  static LAPIDARY_DEVICE uint32_t key(const Params& p, const float* row, int64_t id) {
    return id < p.vocabulary ? order_of(dev::load(row + id)) : 0u;
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    uint32_t* const histogram = reinterpret_cast<uint32_t*>(shared);
    uint32_t* const found = histogram + kDigits;  // digit, how many are still wanted, whether there are so many
    uint32_t* const warps = found + 4;            // [2][kWarps]
    const int64_t index = dev::block_index_x();
    const float* row = p.logits + index * p.logits_stride;
    const int thread = dev::thread_index();
    uint32_t prefix = 0, wanted = uint32_t(p.top < p.vocabulary ? p.top : p.vocabulary);
    bool all = false;  // fewer than `top` are numbers
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int i = thread; i < kDigits; i += kThreads) dev::store_shared(histogram + i, 0u);
      dev::block_barrier();
      for (int64_t id = thread; id < p.vocabulary; id += kThreads) {
        const uint32_t k = key(p, row, id);
        const bool candidate = k != 0 && (shift == 24 || (k ^ prefix) >> (shift + 8) == 0);
        if (candidate) dev::atomic_add(histogram + (k >> shift & 255), 1u);
      }
      dev::block_barrier();
      if (thread == 0) {
        uint32_t left = wanted;
        int digit = kDigits - 1;
        for (; digit >= 0; --digit) {
          const uint32_t count = dev::load_shared(histogram + digit);
          if (count >= left) break;
          left -= count;
        }
        dev::store_shared(found, uint32_t(digit < 0 ? 0 : digit));
        dev::store_shared(found + 1, left);
        dev::store_shared(found + 2, uint32_t(digit < 0));
      }
      dev::block_barrier();
      all = dev::load_shared(found + 2) != 0;
      prefix |= dev::load_shared(found) << shift;
      wanted = dev::load_shared(found + 1);
      if (all) break;  // in the first round, or never
    }
    list(p, row, index, all ? 0u : prefix, all ? 0u : wanted, warps);
  }

  // Lists all ids above `threshold`, and the first `equals` of those at it.
  static LAPIDARY_DEVICE void list(const Params& p, const float* row, int64_t index, uint32_t threshold,
                                   uint32_t equals, uint32_t* warps) {
    int32_t* const ids = p.ids + index * p.capacity;
    const int warp = dev::warp_index(), lane = dev::lane();
    const uint32_t below = (1u << lane) - 1;
    uint32_t listed = 0, equal_before = 0;
    for (int64_t base = 0; base < p.vocabulary; base += kThreads) {
      const int64_t id = base + dev::thread_index();
      const uint32_t k = key(p, row, id);
      const uint32_t equal = dev::warp_ballot(k != 0 && k == threshold), above = dev::warp_ballot(k > threshold);
      if (lane == 0) {
        dev::store_shared(warps + warp, uint32_t(dev::count_ones(equal)));
        dev::store_shared(warps + kWarps + warp, uint32_t(dev::count_ones(above)));
      }
      dev::block_barrier();
      uint32_t equal_at = equal_before, above_at = 0, equal_total = 0, above_total = 0;
      for (int w = 0; w < kWarps; ++w) {
        const uint32_t e = dev::load_shared(warps + w), a = dev::load_shared(warps + kWarps + w);
        equal_at += w < warp ? e : 0;
        above_at += w < warp ? a : 0;
        equal_total += e;
        above_total += a;
      }
      dev::block_barrier();
      // Those above come first in this piece's stretch of the list, then the equal ones that are still wanted.
      const uint32_t equal_wanted = equals > equal_before ? equals - equal_before : 0;
      const uint32_t equal_taken = equal_total < equal_wanted ? equal_total : equal_wanted;
      if (k > threshold) dev::store(ids + listed + above_at + uint32_t(dev::count_ones(above & below)), int32_t(id));
      const uint32_t rank = equal_at - equal_before + uint32_t(dev::count_ones(equal & below));
      if (k != 0 && k == threshold && rank < equal_wanted) dev::store(ids + listed + above_total + rank, int32_t(id));
      listed += above_total + equal_taken;
      equal_before += equal_total;
    }
    if (dev::thread_index() == 0) dev::store(p.counts + index, int32_t(listed));
  }
};

struct ExactLogits {
  using Params = RefineArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t row = dev::block_index_y();
    const int64_t place = int64_t(dev::block_index_x()) * (kThreads / dev::kWarp) + dev::warp_index();
    if (place >= dev::load(p.counts + row)) return;
    const int64_t id = dev::load(p.ids + row * p.capacity + place);
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
