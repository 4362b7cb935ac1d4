// row_major.cuh: matmul with weights that are not packed, f32, f16 or bf16 rows at any stride: correct, not fast.
//
// Algorithm: a warp takes one row of W and up to eight of x; lanes take every 32nd column, in one fused chain each, and are added as a
// tree. Weights are exact, x is f32; an output passes K / 32 + 5 roundings.
#pragma once
#include "kernels/cuda/matmul/problem.cuh"
#include "kernels/cuda/weights/stored_weights.cuh"

namespace lapidary::cuda::matmul {

struct RowMajorParams {
  const unsigned char* weight;
  int64_t weight_stride;  // bytes
  int64_t outputs;
  DType dtype;
  Rows x;
  Output out;
};

struct RowMajor {
  using Params = RowMajorParams;
  static constexpr int kThreads = 256, kMinBlocks = 4, kRows = 8;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t output = int64_t(dev::block_index_x()) * (kThreads / dev::kWarp) + dev::warp_index();
    const int64_t first_row = int64_t(dev::block_index_y()) * kRows;
    if (output >= p.outputs) return;
    const unsigned char* weights = p.weight + output * p.weight_stride;
    float sums[kRows] = {};
    for (int64_t k = dev::lane(); k < p.x.columns; k += dev::kWarp) {
      const float w = stored::float_at(weights + k * stored::block_bytes(p.dtype), p.dtype);
      for (int m = 0; m < kRows; ++m) sums[m] = dev::fma(p.x.at(first_row + m, k), w, sums[m]);
    }
    for (int m = 0; m < kRows; ++m) {
      float sum = sums[m];
      for (int mask = 16; mask; mask /= 2) sum = sum + dev::shuffle_xor(sum, mask);
      if (dev::lane() == m && first_row + m < p.x.rows) p.out.finish_one(first_row + m, output, p.outputs, sum);
    }
  }
};

}  // namespace lapidary::cuda::matmul
