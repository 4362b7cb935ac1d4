// columns.cuh: columns of every row in another order. Formula and contract: ops/row_ops.h.
//
// A thread moves one element: writes are neighbours, reads hit L1 and L2.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/rows.cuh"

namespace lapidary::cuda {

struct GatherColumnsArguments {
  Rows x, out;
  const int32_t* order;
  int64_t rows, columns, gathered;
  ErrorReporter error;
};

static const char* const kGatherColumnsMessages[] = {"order: expected a column below %lld, got %lld"};

struct GatherColumns {
  using Params = GatherColumnsArguments;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t index = int64_t(dev::block_index_x()) * kThreads + dev::thread_index();
    const int64_t row = index / p.gathered, j = index % p.gathered;
    if (row >= p.rows) return;
    const int32_t column = dev::load(p.order + j);
    const bool valid = column >= 0 && column < p.columns;
    if (!valid && row == 0) p.error.report(0, p.columns, column);
    const unsigned char* from = row_at(p.x, row);
    unsigned char* to = writable_row_at(p.out, row);
    if (p.x.dtype == DType::f32) {
      dev::store(reinterpret_cast<uint32_t*>(to) + j,
                 valid ? dev::load(reinterpret_cast<const uint32_t*>(from) + column) : uint32_t(0));
    } else {
      dev::store(reinterpret_cast<uint16_t*>(to) + j,
                 valid ? dev::load(reinterpret_cast<const uint16_t*>(from) + column) : uint16_t(0));
    }
  }
};

}  // namespace lapidary::cuda
