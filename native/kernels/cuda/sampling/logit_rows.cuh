// sampling/logit_rows.cuh: rows of logits, the maxima of their chunks, and what the threads of a block find out together.
//
// A row's vocabulary is cut into chunks of 256. Sums of weights are integers in units of 2^-shift: they have the same bits in any
// order, whichever thread adds what, and prefixes of them are exact. Their error, half a unit per token, is far below the rounding of
// the weights themselves (f32): 2^-44 for vocabularies up to 2¹⁸.
#pragma once
#include "kernels/cuda/device/math.h"
#include "kernels/cuda/launch.h"

namespace lapidary::cuda {

static constexpr int kChunk = 256;
static constexpr float kLogitInfinity = __builtin_huge_valf();

LAPIDARY_HOST_DEVICE int64_t chunk_count(int64_t elements) { return (elements + kChunk - 1) / kChunk; }

struct LogitTable {
  const unsigned char* logits;
  int64_t stride;  // elements between rows
  const float* bias;
  int64_t bias_stride;
  int64_t rows, vocabulary;
  bool f32;
};

// x = logits + bias of one row.
struct LogitRow {
  const unsigned char* logits;
  const float* bias;  // may be null
  int64_t vocabulary;
  bool f32;

  LAPIDARY_DEVICE float at(int64_t i) const {
    float x = f32 ? dev::load(reinterpret_cast<const float*>(logits) + i)
                  : dev::to_float(dev::load(reinterpret_cast<const dev::Bf16*>(logits) + i));
    if (bias != nullptr) x += dev::load(bias + i);
    return x + 0.f;  // −0 becomes 0, its equal
  }
};

LAPIDARY_DEVICE LogitRow logit_row(const LogitTable& table, int64_t row) {
  return {table.logits + row * table.stride * (table.f32 ? 4 : 2),
          table.bias ? table.bias + row * table.bias_stride : nullptr, table.vocabulary, table.f32};
}

// Integers in the order of the floats.
LAPIDARY_DEVICE uint32_t ordered_key(float x) {
  const uint32_t bits = dev::bit_cast<uint32_t>(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
LAPIDARY_DEVICE float from_ordered_key(uint32_t key) {
  return dev::bit_cast<float>(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

// w = e^((x − max) / temperature), for a finite maximum, and as an integer.
struct Weigher {
  float max, inverse_temperature;
  float unit;  // 2^shift

  LAPIDARY_DEVICE float weight(float x) const { return dev::exp((x - max) * inverse_temperature); }
  LAPIDARY_DEVICE uint64_t fixed(float w) const { return uint64_t(w * unit); }
};

// So that the sum of a whole vocabulary stays below 2⁶².
LAPIDARY_DEVICE Weigher make_weigher(float max, float temperature, int64_t vocabulary) {
  int bits = 0;
  while (bits < 31 && int64_t(1) << bits < vocabulary) ++bits;
  const int shift = bits < 18 ? 44 : 62 - bits;
  return {max, dev::div(1.f, temperature), dev::bit_cast<float>(uint32_t(127 + shift) << 23)};
}

// ── what a block finds out together ─────────────────────────────────────────────────────────────────────────────────
static constexpr int kMostWarps = 32;

// `scratch`: a word per warp of shared memory. Every thread gets the result; it ends with a barrier.
template <class T, class Combine>
LAPIDARY_DEVICE T block_combine(T value, T* scratch, const Combine& combine) {
  for (int mask = 16; mask > 0; mask /= 2) value = combine(value, dev::shuffle_xor(value, mask));
  if (dev::lane() == 0) dev::store_shared(scratch + dev::warp_index(), value);
  dev::block_barrier();
  T result = dev::load_shared(scratch);
  for (int w = 1; w < dev::block_threads() / dev::kWarp; ++w) result = combine(result, dev::load_shared(scratch + w));
  dev::block_barrier();
  return result;
}

struct Larger {
  LAPIDARY_DEVICE float operator()(float a, float b) const { return dev::max(a, b); }
};
struct Smaller {
  LAPIDARY_DEVICE uint32_t operator()(uint32_t a, uint32_t b) const { return a < b ? a : b; }
};
struct Sum {
  template <class T>
  LAPIDARY_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

// Sum of the lanes up to this one.
template <class T>
LAPIDARY_DEVICE T warp_prefix(T value) {
  for (int delta = 1; delta < dev::kWarp; delta *= 2) {
    const T below = dev::shuffle_up(value, delta);
    if (dev::lane() >= delta) value += below;
  }
  return value;
}

// ── maxima of chunks ────────────────────────────────────────────────────────────────────────────────────────────────
struct ChunkMaximaArguments {
  LogitTable table;
  float* maxima;  // [rows, chunks]
};

// A warp per chunk, over all rows; −∞ where all logits of a chunk are NaN.
struct ChunkMaxima {
  using Params = ChunkMaximaArguments;
  static constexpr int kThreads = 256, kMinBlocks = 8;
  LAPIDARY_DEVICE static void run(const Params& p, unsigned char*) {
    constexpr int kWarps = kThreads / dev::kWarp;
    const int64_t chunks = chunk_count(p.table.vocabulary), total = p.table.rows * chunks;
    for (int64_t item = int64_t(dev::block_index_x()) * kWarps + dev::warp_index(); item < total;
         item += int64_t(dev::grid_size_x()) * kWarps) {
      const int64_t row = item / chunks, begin = (item - row * chunks) * kChunk;
      const LogitRow logits = logit_row(p.table, row);
      float largest = -kLogitInfinity;
#pragma unroll
      for (int i = 0; i < kChunk; i += dev::kWarp) {
        const int64_t id = begin + i + dev::lane();
        if (id < logits.vocabulary) largest = dev::max(largest, logits.at(id));
      }
      for (int mask = 16; mask > 0; mask /= 2) largest = dev::max(largest, dev::shuffle_xor(largest, mask));
      if (dev::lane() == 0) dev::store(p.maxima + item, largest);
    }
  }
};

LAPIDARY_DEVICE float row_maximum(const float* maxima, int64_t chunks, float* scratch) {
  float largest = -kLogitInfinity;
  for (int64_t c = dev::thread_index(); c < chunks; c += dev::block_threads())
    largest = dev::max(largest, dev::load(maxima + c));
  return block_combine(largest, scratch, Larger());
}

// The first id whose x is `largest`, the row's maximum; 0 where all are NaN. Chunks before the first that holds it are skipped, and
// those behind are as soon as a warp has found one.
LAPIDARY_DEVICE int32_t first_of_largest(const LogitRow& row, const float* maxima, float largest, uint32_t* scratch) {
  const int64_t chunks = chunk_count(row.vocabulary);
  uint32_t found = 0xffffffffu;
  for (int64_t c = dev::warp_index(); c < chunks && found == 0xffffffffu; c += dev::block_threads() / dev::kWarp) {
    if (dev::load(maxima + c) != largest) continue;
    for (int i = 0; i < kChunk && found == 0xffffffffu; i += dev::kWarp) {
      const int64_t id = c * kChunk + i + dev::lane();
      const uint32_t equal = dev::warp_ballot(id < row.vocabulary && row.at(id) == largest);
      if (equal != 0) found = uint32_t(c * kChunk + i) + uint32_t(31 - dev::leading_zeros(equal & (0 - equal)));
    }
  }
  found = block_combine(found, scratch, Smaller());
  return found == 0xffffffffu ? 0 : int32_t(found);
}

}  // namespace lapidary::cuda
