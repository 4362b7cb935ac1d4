// bf16_rows.h: rows of x as A tiles of bf16.
//
//   x [M, K] f32|bf16  →  [M/32][K/32][2][16 rows][32 bf16]
//
// A tile is 1 KB of consecutive bytes, so a tile load touches 16 lines and 1 page whatever K is: rows a power of two
// apart would share one set of L1. Rows past M and columns past K are 0. f32 is rounded to nearest even; subnormals
// become 0. Bytes: reads x once, writes 2 bytes per element; the tiles of 512 rows stay in L2 or L3.
#pragma once
#include "kernels/cpu/matmul/activations.h"

namespace lapidary {
namespace {
namespace matmul_amx {

using namespace simd;
using namespace matmul_cpu;

static constexpr int kBlockRows = 32;    // rows of x in a block of the product: two A tiles
static constexpr int kStepColumns = 32;  // columns of x (and of W) in one product of tiles
static constexpr int64_t kStepBytes = 2 * kTileBytes;

struct PackedRows {
  unsigned char* data;
  int64_t rows;   // M
  int64_t steps;  // of 32 columns

  LAPIDARY_MEMBER_INLINE int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  LAPIDARY_MEMBER_INLINE int64_t bytes() const { return blocks() * steps * kStepBytes; }
  LAPIDARY_MEMBER_INLINE unsigned char* tiles(int64_t block, int64_t step) const {
    return data + (block * steps + step) * kStepBytes;
  }
};

// 32 elements from `column` on as bf16.
LAPIDARY_INLINE Bytes load_32_as_bf16(const TensorView& x, int64_t offset, int64_t column, int64_t columns) {
  if (x.dtype == DType::bf16) {
    const uint16_t* p = x.as<uint16_t>() + offset + column;
    if (columns - column >= 32) return load_bytes(p);
    alignas(64) uint16_t padded[32] = {};
    if (columns > column) memcpy(padded, p, size_t(columns - column) * 2);
    return load_bytes(padded);
  }
  const F32 low = load_x(x, offset, column, columns), high = load_x(x, offset, column + kLanes, columns);
  return pack_bf16(high, low);
}

// This thread's share of packing. A piece is one block of rows by 256 columns: 32 short stretches of reads, 16 KB of
// writes.
static void pack_rows(const TensorView& x, const PackedRows& to, int thread, int threads) {
  static constexpr int64_t kPieceSteps = 8;
  const int64_t columns = x.dims[x.rank - 1];
  const int64_t pieces_per_block = (to.steps + kPieceSteps - 1) / kPieceSteps;
  const int64_t pieces = to.blocks() * pieces_per_block;
  for (int64_t piece = pieces * thread / threads; piece < pieces * (thread + 1) / threads; ++piece) {
    const int64_t block = piece / pieces_per_block;
    const int64_t begin = piece % pieces_per_block * kPieceSteps;
    const int64_t end = begin + kPieceSteps < to.steps ? begin + kPieceSteps : to.steps;
    for (int64_t r = 0; r < kBlockRows; ++r) {
      const int64_t row = block * kBlockRows + r;
      unsigned char* line = to.tiles(block, begin) + r * kTileRowBytes;  // the second tile follows the first
      const int64_t offset = row < to.rows ? row_offset(x, row) : 0;
      for (int64_t step = begin; step < end; ++step, line += kStepBytes) {
        store_bytes(line, row < to.rows ? load_32_as_bf16(x, offset, step * kStepColumns, columns) : Bytes(zero_i32()));
      }
    }
  }
}

}  // namespace matmul_amx
}  // namespace
}  // namespace lapidary
