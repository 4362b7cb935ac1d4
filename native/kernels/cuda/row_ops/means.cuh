// means.cuh: the mean of the rows of each sequence. Formula and contract: ops/row_ops.h.
//
// A block sums 256 columns of one sequence. Its eight warps take stretches of 32 rows in turn, each lane eight columns; the warps' sums
// are added in a fixed order.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/rows.cuh"
#include "ops/row_ops.h"

namespace lapidary::cuda {

struct MeanRowsArguments {
  Rows x;
  const int32_t* starts;
  float* out;
  int64_t rows, n;
  int64_t blocks_per_sequence;
  ErrorReporter error;
};

static const char* const kMeanRowsMessages[] = {
    "starts: expected numbers that do not decrease, up to the rows of x, got %lld, then %lld"};

struct MeanRows {
  using Params = MeanRowsArguments;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr int kWarps = kThreads / dev::kWarp;
  static constexpr int64_t kColumns = dev::kWarp * kChunk;
  static constexpr int64_t kRowsPerSum = 32;
  static constexpr size_t kSharedBytes = kWarps * kColumns * sizeof(float);

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int64_t sequence = dev::block_index_x() / p.blocks_per_sequence;
    const int64_t block = dev::block_index_x() % p.blocks_per_sequence;
    const int64_t begin = dev::load(p.starts + sequence), end = dev::load(p.starts + sequence + 1);
    const bool valid = begin >= 0 && end >= begin && end <= p.rows;
    if (!valid && block == 0 && dev::thread_index() == 0) p.error.report(0, begin, end);
    const int64_t column = block * kColumns + dev::lane() * kChunk;
    float sum[kChunk] = {};
    if (valid && column < p.n) {
      for (int64_t row = begin + dev::warp_index() * kRowsPerSum; row < end; row += kWarps * kRowsPerSum) {
        const int64_t last = row + kRowsPerSum < end ? row + kRowsPerSum : end;
        float part[kChunk] = {};
        for (int64_t i = row; i < last; ++i) {
          float v[kChunk];
          read_chunk(row_at(p.x, i), p.x.dtype, p.x.aligned, column, p.n, v);
#pragma unroll
          for (int k = 0; k < kChunk; ++k) part[k] += v[k];
        }
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sum[k] += part[k];
      }
    }
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      dev::store_shared(sums + dev::warp_index() * kColumns + k * dev::kWarp + dev::lane(), sum[k]);
    }
    dev::block_barrier();
    // A column per thread, where the lanes left them: column k of lane l at k · 32 + l.
    const int64_t mine = block * kColumns + dev::lane() * kChunk + dev::warp_index();
    if (mine >= p.n) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += dev::load_shared(sums + w * kColumns + dev::thread_index());
    const float mean = valid && end > begin ? dev::div(total, float(end - begin)) : 0.0f;
    dev::store(p.out + sequence * p.n + mine, mean);
  }
};

}  // namespace lapidary::cuda
