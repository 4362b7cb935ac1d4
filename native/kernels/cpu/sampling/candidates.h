// sampling/candidates.h: the tokens that may still be picked, the cutoffs of top-k and top-p among them, and the pick
// itself. Include after simd/<isa>.h.
//
// A cutoff is the last token to keep in descending order of x (equals: ascending id). It is found without sorting.
// Floats map to integers (keys) of the same order; the cutoff's key is searched between two keys, by nine parts at a
// time: one pass over the candidates sums what lies at or above each of eight thresholds, and the part in which the sum
// reaches the goal goes on.
//
//   keys   low ├────┼────┼────┼────┼────┼────┼────┼────┼────┤ high       sum(≥ low) ≥ goal > sum(≥ high)
//                                       └────┘ next
//
// At most eleven passes for 32 bits, whatever the numbers; each reads 8 bytes and does 24 vector operations per kLanes
// candidates. Once few candidates are left between low and high, only those are read.
#pragma once
#include <cstdint>

#include "core/inline.h"

namespace lapidary {
namespace {

using simd::F32;
using simd::kLanes;

// Sums are f32 within a chunk and double beyond it, in the same order for any number of threads.
constexpr int kChunk = 256;

LAPIDARY_INLINE int lanes_at(int64_t i, int64_t end) { return int(end - i < kLanes ? end - i : kLanes); }

// In ascending order of id.
struct Candidates {
  float* x;       // never NaN or −0
  float* weight;  // e^((x − max) / temperature), once weighed; 0 for what is dropped
  int32_t* id;
  int64_t count;
};

// Keep what is greater than `x`, and of what equals it the first `equals`.
struct Cutoff {
  float x;
  int64_t equals;
};

// Integers in the order of the floats.
LAPIDARY_INLINE uint32_t ordered_key(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
LAPIDARY_INLINE float from_ordered_key(uint32_t key) {
  return __builtin_bit_cast(float, key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

// What a cutoff is searched in: numbers, and how much each adds to the sum (null: one).
struct Numbers {
  const float* x;
  const float* weight;
  int64_t count;
};

constexpr int kThresholds = 8;

// sums[j] = Σ of the weights of all x ≥ thresholds[j].
inline void sums_from(const Numbers& numbers, const float* thresholds, double* sums) {
  for (int j = 0; j < kThresholds; ++j) sums[j] = 0;
  for (int64_t chunk = 0; chunk < numbers.count; chunk += kChunk) {
    const int64_t end = chunk + kChunk < numbers.count ? chunk + kChunk : numbers.count;
    F32 partial[kThresholds];
    for (int j = 0; j < kThresholds; ++j) partial[j] = simd::zero();
    for (int64_t i = chunk; i < end; i += kLanes) {
      const int n = lanes_at(i, end);
      const F32 x = simd::load_first(numbers.x + i, n);
      F32 weight = numbers.weight == nullptr ? simd::set1(1) : simd::load_first(numbers.weight + i, n);
      weight = simd::select(simd::less(simd::iota(), simd::set1_i32(n)), weight, simd::zero());
      for (int j = 0; j < kThresholds; ++j) {
        const simd::Mask from = simd::less_equal(simd::set1(thresholds[j]), x);
        partial[j] = simd::add(partial[j], simd::select(from, weight, simd::zero()));
      }
    }
    for (int j = 0; j < kThresholds; ++j) sums[j] += double(simd::reduce_add(partial[j]));
  }
}

// Copies the numbers in [low, high) unless they are more than `capacity`; returns how many, or −1.
inline int64_t extract(const Numbers& numbers, float low, float high, int64_t capacity, float* x, float* weight) {
  int64_t count = 0;
  for (int64_t i = 0; i < numbers.count; i += kLanes) {
    const int n = lanes_at(i, numbers.count);
    const F32 lanes = simd::load_first(numbers.x + i, n);
    if (!simd::any(simd::mask_and(simd::less_equal(simd::set1(low), lanes), simd::less(lanes, simd::set1(high)))))
      continue;
    for (int64_t k = i; k < i + n; ++k) {
      if (!(numbers.x[k] >= low && numbers.x[k] < high)) continue;
      if (count == capacity) return -1;
      x[count] = numbers.x[k];
      weight[count] = numbers.weight == nullptr ? 1.f : numbers.weight[k];
      ++count;
    }
  }
  return count;
}

// The cutoff of the shortest prefix, in descending order, whose weights sum to at least `goal` > 0. The sum of all that
// is ≥ low reaches the goal (nominally: rounding may deny it, and all is kept); no number exceeds `highest`.
inline Cutoff find_cutoff(Numbers numbers, float lowest, float highest, double goal) {
  constexpr int64_t kFew = 1024;
  float few_x[kFew], few_weight[kFew];
  bool few = numbers.count <= kFew;
  uint32_t low = ordered_key(lowest), high = ordered_key(highest) + 1;
  double above = 0;  // the sum of what is ≥ high
  while (high - low > 1) {
    uint32_t keys[kThresholds + 2];
    for (int j = 0; j <= kThresholds + 1; ++j) keys[j] = low + uint32_t(uint64_t(high - low) * j / (kThresholds + 1));
    float thresholds[kThresholds];
    for (int j = 0; j < kThresholds; ++j) thresholds[j] = from_ordered_key(keys[j + 1]);
    double sums[kThresholds];
    sums_from(numbers, thresholds, sums);
    int part = kThresholds;
    while (part > 0 && sums[part - 1] < goal) --part;
    // Numbers in all: they are kept from here, and nothing is left to tell apart.
    if (part > 0 && numbers.weight == nullptr && sums[part - 1] == goal) return {thresholds[part - 1], INT64_MAX};
    low = keys[part];
    high = keys[part + 1];
    if (part < kThresholds) above = sums[part];
    if (few || high - low <= 1) continue;
    const int64_t count = extract(numbers, from_ordered_key(low), from_ordered_key(high), kFew, few_x, few_weight);
    if (count < 0) continue;
    numbers = {few_x, few_weight, count};
    goal -= above;
    above = 0;
    few = true;
  }
  const float cutoff = from_ordered_key(low);
  int64_t equals = 0;
  for (int64_t i = 0; i < numbers.count; ++i) {
    if (numbers.x[i] != cutoff) continue;
    ++equals;
    above += numbers.weight == nullptr ? 1 : double(numbers.weight[i]);
    if (above >= goal) break;
  }
  return {cutoff, equals};
}

// Drops what the cutoff does, from a list that has no weights yet.
inline void keep_best(Candidates& candidates, Cutoff cutoff) {
  const F32 least = simd::set1(cutoff.x);
  int64_t kept = 0;
  for (int64_t i = 0; i < candidates.count; i += kLanes) {
    const int n = lanes_at(i, candidates.count);
    if (!simd::any(simd::less_equal(least, simd::load_first(candidates.x + i, n)))) continue;
    for (int64_t k = i; k < i + n; ++k) {
      const float x = candidates.x[k];
      if (x < cutoff.x || (x == cutoff.x && cutoff.equals-- <= 0)) continue;
      candidates.x[kept] = x;
      candidates.id[kept++] = candidates.id[k];
    }
  }
  candidates.count = kept;
}

// Sets the weights to 0 of what the cutoff drops.
inline void drop_weights(const Candidates& candidates, Cutoff cutoff) {
  const F32 least = simd::set1(cutoff.x);
  for (int64_t i = 0; i < candidates.count; i += kLanes) {
    const int n = lanes_at(i, candidates.count);
    const F32 x = simd::load_first(candidates.x + i, n), weight = simd::load_first(candidates.weight + i, n);
    simd::store_first(candidates.weight + i, simd::select(simd::less(x, least), simd::zero(), weight), n);
    if (!simd::any(simd::mask_and(simd::less_equal(least, x), simd::less_equal(x, least)))) continue;
    for (int64_t k = i; k < i + n; ++k) {
      if (candidates.x[k] == cutoff.x && cutoff.equals-- <= 0) candidates.weight[k] = 0;
    }
  }
}

// Sets weights below `least` to 0 and fills the sums of chunks. Returns their sum.
inline double sum_weights(float* weight, int64_t count, float least, double* chunk_sum) {
  const F32 floor = simd::set1(least);
  double total = 0;
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t end = chunk + kChunk < count ? chunk + kChunk : count;
    F32 sum = simd::zero();
    for (int64_t i = chunk; i < end; i += kLanes) {
      const int n = lanes_at(i, end);
      const F32 w = simd::load_first(weight + i, n);
      const F32 kept = simd::select(simd::less(w, floor), simd::zero(), w);
      simd::store_first(weight + i, kept, n);
      sum = simd::add(sum, kept);
    }
    chunk_sum[chunk / kChunk] = double(simd::reduce_add(sum));
    total += chunk_sum[chunk / kChunk];
  }
  return total;
}

// Where the running sum exceeds a target: first the chunk, then the element in it. Where rounding leaves none, the last
// of positive weight; at least one has.
struct Position {
  int64_t chunk;
  double before;  // the sum of the chunks before it
};

inline Position find_chunk(const double* chunk_sum, int64_t chunks, double target) {
  Position position = {0, 0};
  double running = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (!(chunk_sum[chunk] > 0)) continue;
    position = {chunk, running};
    running += chunk_sum[chunk];
    if (running > target) break;
  }
  return position;
}

inline int find_in_chunk(const float* weight, int count, double before, double target) {
  int found = 0;
  for (int i = 0; i < count; ++i) {
    if (!(weight[i] > 0)) continue;
    found = i;
    before += double(weight[i]);
    if (before > target) break;
  }
  return found;
}

}  // namespace
}  // namespace lapidary
