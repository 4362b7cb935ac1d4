// bf16_blocks.h: many rows of x against weights in bf16 tiles.
//
//                 B buffer: 2 panels × a stretch of K (L1)
//                  ┌─────────┬─────────┐         one step of K = 32:
//   block of   A₀  │ C₀ tmm0 │ C₁ tmm1 │           loads  A₀ B₀ B₁ A₁   1 KB each
//   32 rows        ├─────────┼─────────┤           tdp    C₀ C₁ C₂ C₃   16 cycles each
//   of x (L2)  A₁  │ C₂ tmm2 │ C₃ tmm3 │         A from L2: 32 bytes per cycle
//                  └─────────┴─────────┘
//
//   for each band of rows of x                            A of a band, or a stretch of it, stays in L2
//     for each group of column blocks of this thread
//       for each stretch of K                             C of the group waits in L2
//         for each column block (2 panels)                B in L1; advance() fills the next buffer meanwhile
//           for each block of 32 rows: 2 × 2 tiles
//
// After A. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", 2008, with the packing of B
// replaced by dequantisation. Per 32 × 32 block and stretch of 512: 1024 cycles of products, C read and written once (8
// KB, about 100 cycles).
#pragma once
#include "kernels/cpu/matmul/epilogue.h"
#include "kernels/cpu/matmul/work_shares.h"
#include "kernels/cpu/matmul_amx/bf16_panels.h"

namespace lapidary {
namespace {
namespace matmul_amx {

static constexpr int kBlockPanels = 2;
static constexpr int64_t kBlockFloats = 4 * kTileHeight * kLanes;  // C of a block: [2 halves][2 panels][16 rows][16]

// L1 (48 KiB on Sapphire and Granite Rapids): a buffer of 2 panels × 512 columns takes 32 KiB, and A and C pass by.
static constexpr int64_t kStretchColumns = 512;
// L2 (2 MiB there): what a band keeps in it. The rest is for the next B buffer, weights on their way, and chance.
static constexpr int64_t kBandBytes = 1408 << 10;
// A weight is dequantised once per band: with 512 rows that is a sixth of the products' time, if nothing hid it.
static constexpr int64_t kBandBlocks = 16, kShortBandBlocks = 8;

struct Bf16Plan {
  PackedRows x;  // data unset
  int64_t stretches, stretch_columns;
  int64_t band_blocks;  // blocks of 32 rows in a band
  int64_t group;        // column blocks that share a reading of the band's stretch of A
  int64_t own_bytes;    // of each thread: two B buffers and C of a group
};

LAPIDARY_INLINE int64_t round_up(int64_t value, int64_t granule) { return (value + granule - 1) / granule * granule; }
LAPIDARY_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

LAPIDARY_INLINE Bf16Plan plan_bf16(int64_t rows, const TensorView& w) {
  Bf16Plan plan;
  const int64_t granule = panel_format(w).codes == CodeWidth::none ? kStepColumns : kRecordColumns;
  const int64_t columns = round_up(w.dims[1], granule);
  plan.x = {nullptr, rows, columns / kStepColumns};
  const int64_t wanted = (columns + kStretchColumns - 1) / kStretchColumns;
  plan.stretch_columns = round_up((columns + wanted - 1) / wanted, granule);
  plan.stretches = (columns + plan.stretch_columns - 1) / plan.stretch_columns;
  const int64_t row_bytes = kBlockRows * columns * 2;  // of A, per block
  plan.group = 1;
  plan.band_blocks = least(plan.x.blocks(), kBandBlocks);
  if (plan.band_blocks * row_bytes > kBandBytes && kShortBandBlocks * row_bytes <= kBandBytes) {
    plan.band_blocks = kShortBandBlocks;
  } else if (plan.band_blocks * row_bytes > kBandBytes) {
    // A does not fit: keep a stretch of it, and C of as many column blocks as there is room for. A is read from L3 once
    // per group: 2 · 512 / (32 · group) bytes per cycle, of 8.
    const int64_t stretch_bytes = plan.band_blocks * kBlockRows * plan.stretch_columns * 2;
    plan.group = (kBandBytes - stretch_bytes) / (plan.band_blocks * kBlockFloats * 4);
  }
  plan.own_bytes = 2 * kBlockPanels * plan.stretch_columns * R * 2 + plan.group * plan.band_blocks * kBlockFloats * 4;
  return plan;
}

// One block: C (+)= A · B over `steps` steps. kHalves: 1 where the block has at most 16 rows.
template <int kHalves>
static void multiply_block(Tiles& tiles, const unsigned char* a, const unsigned char* b, int64_t steps, bool first,
                           float* c, Stretch& next, AdvanceFunction advance_next, int64_t lines) {
  constexpr int kTileFloats = kTileHeight * kLanes;
  const unsigned char* const b1 = b + steps * kTileBytes;
  if (first) {
    tiles.zero<0>();
    tiles.zero<1>();
    if (kHalves == 2) tiles.zero<2>();
    if (kHalves == 2) tiles.zero<3>();
  } else {
    tiles.load<0>(c, kTileRowBytes);
    tiles.load<1>(c + kTileFloats, kTileRowBytes);
    if (kHalves == 2) tiles.load<2>(c + 2 * kTileFloats, kTileRowBytes);
    if (kHalves == 2) tiles.load<3>(c + 3 * kTileFloats, kTileRowBytes);
  }
  for (int64_t step = 0; step < steps; ++step) {
    tiles.load<4>(a + step * kStepBytes, kTileRowBytes);
    tiles.load<6>(b + step * kTileBytes, kTileRowBytes);
    tiles.dp_bf16<0, 4, 6>();
    tiles.load<7>(b1 + step * kTileBytes, kTileRowBytes);
    tiles.dp_bf16<1, 4, 7>();
    if constexpr (kHalves == 2) {
      tiles.load<5>(a + step * kStepBytes + kTileBytes, kTileRowBytes);
      tiles.dp_bf16<2, 5, 6>();
      tiles.dp_bf16<3, 5, 7>();
    }
    if (step % 2 == 1) advance_next(next, lines);
  }
  tiles.store<0>(c, kTileRowBytes);
  tiles.store<1>(c + kTileFloats, kTileRowBytes);
  if (kHalves == 2) tiles.store<2>(c + 2 * kTileFloats, kTileRowBytes);
  if (kHalves == 2) tiles.store<3>(c + 3 * kTileFloats, kTileRowBytes);
  tiles.expire();
}

// A finished block goes through the epilogue, 16 rows at a time.
static void finish_block(const Output& out, int64_t panel, int panels, int64_t row, int64_t rows, float* c) {
  for (int half = 0; half < 2 && row < rows; ++half, row += kTileHeight, c += kBlockFloats / 2) {
    const int height = int(least(rows - row, kTileHeight));
    // finish_tile expects the panels `height` rows apart.
    if (height < kTileHeight) memmove(c + height * R, c + kTileHeight * R, size_t(height) * R * 4);
    finish_tile(out, panel, panels, row, height, c);
  }
}

struct Bf16Call {
  const TensorView& w;
  PanelShape shape;
  int64_t panel_bytes, panels;
  Bf16Plan plan;
  Output out;
  AdvanceFunction advance;
};

// Column blocks [begin, end) of at most a group against one band of rows.
static void multiply_group(Tiles& tiles, const Bf16Call& call, int64_t begin, int64_t end, int64_t first_block,
                           int64_t last_block, unsigned char* buffers, float* sums) {
  const Bf16Plan& plan = call.plan;
  const int64_t columns = plan.x.steps * kStepColumns, blocks = last_block - first_block;
  const int64_t buffer_bytes = kBlockPanels * plan.stretch_columns * R * 2;
  const int64_t items = plan.stretches * (end - begin);  // of one B buffer each, stretch by stretch
  Stretch next;
  next.shape = call.shape;
  // The stretch after the next one: further along the panels, or in the blocks two further.
  next.ahead =
      end - begin == 1 && plan.stretches > 1 ? call.panel_bytes / plan.stretches : 2 * kBlockPanels * call.panel_bytes;
  const auto start = [&](int64_t item) {
    const int64_t panel = (begin + item % (end - begin)) * kBlockPanels;
    next.first = call.w.data + panel * call.panel_bytes;
    next.second = panel + 1 < call.panels ? next.first + call.panel_bytes : nullptr;
    next.column = item / (end - begin) * plan.stretch_columns;
    next.lines = least(plan.stretch_columns, columns - next.column) / kLineColumns;
    next.done = 0;
    next.out = buffers + item % 2 * buffer_bytes;
  };
  // Lines per two steps so that a buffer is full when the products of the one before are done.
  const int64_t lines = (2 * kRecordColumns / kLineColumns + blocks - 1) / blocks;

  start(0);
  call.advance(next, 2 * next.lines);
  for (int64_t item = 0; item < items; ++item) {
    const int64_t stretch = item / (end - begin), block_column = item % (end - begin);
    const int64_t first_step = stretch * plan.stretch_columns / kStepColumns;
    const int64_t steps = least(plan.stretch_columns / kStepColumns, plan.x.steps - first_step);
    if (item + 1 < items) start(item + 1);
    float* const c = sums + block_column * plan.band_blocks * kBlockFloats;
    for (int64_t block = 0; block < blocks; ++block) {
      const bool short_block = plan.x.rows - (first_block + block) * kBlockRows <= kTileHeight;
      const auto multiply = short_block ? multiply_block<1> : multiply_block<2>;
      multiply(tiles, plan.x.tiles(first_block + block, first_step), buffers + item % 2 * buffer_bytes, steps,
               stretch == 0, c + block * kBlockFloats, next, call.advance, lines);
    }
    call.advance(next, 2 * next.lines);
    if (stretch + 1 < plan.stretches) continue;
    const int64_t panel = (begin + block_column) * kBlockPanels;
    for (int64_t block = 0; block < blocks; ++block) {
      finish_block(call.out, panel, int(least(call.panels - panel, kBlockPanels)), (first_block + block) * kBlockRows,
                   plan.x.rows, c + block * kBlockFloats);
    }
  }
}

static void matmul_bf16(const Call& call, Team& team, const PanelShape& shape, AdvanceFunction advance) {
  const TensorView &x = call.in[0], &w = call.in[1];
  Bf16Call job = {w, shape, panel_bytes(w), panel_count(w), plan_bf16(row_count(x), w), describe_output(call), advance};
  const Bf16Plan& plan = job.plan;
  job.plan.x.data = team.scratch;
  pack_rows(x, plan.x, team.thread, team.threads);
  team_barrier(team);

  unsigned char* const own = team.scratch + round_up(plan.x.bytes(), 128) + team.thread * round_up(plan.own_bytes, 128);
  float* const sums = reinterpret_cast<float*>(own + 2 * kBlockPanels * plan.stretch_columns * R * 2);
  const int64_t column_blocks = (job.panels + kBlockPanels - 1) / kBlockPanels;
  Tiles tiles(kFullTiles);
  // Claims of a group, or of 512 columns: a claim reads the band again. Where the part that is claimed would not give each thread
  // one, none is: the one that got it would be late by it (1152 columns on two threads: 23 blocks against 13).
  const int64_t smallest = plan.group > 16 ? plan.group : 16;
  const bool claims = column_blocks / 4 >= team.threads * smallest;
  const Shares shares = divide(team.threads, column_blocks, smallest, claims ? 6 : 8);
  for_each_share(team, 0, shares, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t block = 0; block < plan.x.blocks(); block += plan.band_blocks) {
      const int64_t last_block = least(block + plan.band_blocks, plan.x.blocks());
      for (int64_t at = begin; at < end; at += plan.group) {
        multiply_group(tiles, job, at, least(at + plan.group, end), block, last_block, own, sums);
      }
    }
  });
}

LAPIDARY_INLINE size_t bf16_scratch(const Call& call, int threads) {
  const Bf16Plan plan = plan_bf16(row_count(call.in[0]), call.in[1]);
  return size_t(round_up(plan.x.bytes(), 128) + threads * round_up(plan.own_bytes, 128));
}

}  // namespace matmul_amx
}  // namespace
}  // namespace lapidary
