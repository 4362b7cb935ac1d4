// strips.h: many rows of x against a run of panels: the blocking that integer and float panels share.
//
//                        strip: kStripPanels panels
//                      ┌──────────┬──────────┐
//   tile of H rows     │  H × R   │  H × R   │    sums in registers while a column block lasts
//   of x (broadcasts)  └──────────┴──────────┘
//
//   for each block of rows of x, for each block of columns:       the tiles' share of x stays in L2
//     for each strip of this thread's pass:                       the strip's share of W stays in L1
//       prepare it; for each tile of the row block: multiply      sums between column blocks: scratch, in the order of
//       use
//
// Sums go through memory in tiles of H · kStripPanels neighbouring vectors, so that rows of y a power of two apart
// never compete for a cache set; only finished outputs are written to y.
#pragma once
#include "kernels/cpu/matmul/epilogue.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

static constexpr int kStripPanels = 2;
// Strips of one pass: their sums, 48 KiB each, wait in L2 and L3 between column blocks.
static constexpr int64_t kPassStrips = 32;

// Column blocks of nearly equal size, in groups of 32 columns; all but the last are a multiple of `granule`.
struct ColumnBlocks {
  int64_t count, groups;
};
LAPIDARY_INLINE ColumnBlocks column_blocks(int64_t groups, int64_t most, int64_t granule) {
  const int64_t count = (groups + most - 1) / most;
  const int64_t each = ((groups + count - 1) / count + granule - 1) / granule * granule;
  return {(groups + each - 1) / each, each};
}

// Floats that a pass keeps between column blocks; `sums`: accumulators of an output.
LAPIDARY_INLINE int64_t pass_floats(const ColumnBlocks& blocks, const Tiling& tiling, int64_t row_block, int sums) {
  if (blocks.count <= 1) return int64_t(tiling.height) * kStripPanels * R * sums;
  return kPassStrips * (tiling.rows < row_block ? tiling.rows : row_block) * kStripPanels * R * sums;
}

// Strips [begin, end), at most kPassStrips, against all of x. A Kernel has
//   tiling, groups, blocks, panels              x in tiles; groups of columns in all and by block; panels of W
//   kSums, kRowBlock                            accumulators of an output; rows of a row block
//   prepare(panel, present, group, groups)      brings part of a strip into the form that multiply() reads
//   multiply(tile, height, group, groups, sums) adds the prepared part to sums, or starts them where group is 0
//   finish(panel, present, tile, height, sums)  turns sums into [kStripPanels][H][R] outputs, before the epilogue
template <class Kernel>
static void run_pass(Kernel& kernel, const Output& out, int64_t begin, int64_t end, float* sums) {
  const Tiling& tiling = kernel.tiling;
  const ColumnBlocks& blocks = kernel.blocks;
  const int64_t block_tiles = Kernel::kRowBlock / tiling.height;
  for (int64_t tile_begin = 0; tile_begin < tiling.tiles; tile_begin += block_tiles) {
    const int64_t tile_end = tile_begin + block_tiles < tiling.tiles ? tile_begin + block_tiles : tiling.tiles;
    const int64_t block_rows = tiling.first_row(tile_end) - tiling.first_row(tile_begin);
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t group = block * blocks.groups;
      const int64_t groups = group + blocks.groups < kernel.groups ? blocks.groups : kernel.groups - group;
      for (int64_t strip = begin; strip < end; ++strip) {
        const int64_t panel = strip * kStripPanels;
        const int present = int(kernel.panels - panel < kStripPanels ? kernel.panels - panel : kStripPanels);
        kernel.prepare(panel, present, group, groups);
        float* tile_sums = sums;
        if (blocks.count > 1) tile_sums += (strip - begin) * block_rows * kStripPanels * R * Kernel::kSums;
        for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
          const int height = tiling.rows_of(tile);
          kernel.multiply(tile, height, group, groups, tile_sums);
          if (block == blocks.count - 1) {
            kernel.finish(panel, present, tile, height, tile_sums);
            finish_tile(out, panel, present, tiling.first_row(tile), height, tile_sums);
          }
          if (blocks.count > 1) tile_sums += int64_t(height) * kStripPanels * R * Kernel::kSums;
        }
      }
    }
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
