// int8_groups.h: 9 … 48 rows of x against integer weights in byte tiles, exact within each group of 32 columns.
//
//                panel: 16 rows of W         per group of 32 columns (scheme super: two of 16):
//               ┌───────────────────┐          C ← Σ codes of x · codes of W   one product, s32, exact
//   tile of     │  C tmm0 … tmm3    │          y ← group_term(C, scales)       16 vectors
//   16 rows     │  groups g … g + 3 │        four groups at a time; the vectors of the last four run
//   of x        └───────────────────┘        beside the products of the next
//
// The same numbers as the AVX-512 path, bit for bit: x is rounded by quantize_group(), a group's term is group_term()
// (matmul/activations.h, matmul/panel_codecs.h). Only the integer sums are made by tiles.
//
// Bytes: the panels once, whatever the number of rows; below 49 rows that is most of the time. Per 512 weights and 16
// rows: one product of half depth (16 cycles) and 16 vectors of 6 instructions (48 cycles on two ports): 0.1 cycles per
// weight, against 0.14 that a q4_0 weight takes from memory at 15 GB/s per core.
#pragma once
#include "kernels/cpu/matmul/decode.h"
#include "kernels/cpu/matmul/work_shares.h"
#include "kernels/cpu/matmul_amx/bf16_rows.h"

namespace lapidary {
namespace {
namespace matmul_amx {

static constexpr int64_t kMostInt8Rows = 48;
static constexpr int kMostInt8Tiles = kMostInt8Rows / kTileHeight;

// Records expanded at a time: 16 KB of codes and 4 KB of scales for two panels would not leave room in L1 for x; 8 KB
// of one do.
static constexpr int64_t kChunkRecords = 8;
static constexpr int kGroupsAtOnce = 4;

// What group_term() takes for a group of a panel, as vectors in memory.
struct ChunkScales {
  alignas(64) float a[2 * kChunkRecords][kLanes];
  alignas(64) float b[2 * kChunkRecords][kLanes];
};

// x as `Activations` with tiles of 16 rows, but the codes of an entry in rows: [16 rows][32 columns] s8 instead of
// [4][16][8]. Rows past M are 0. Scales and corrections lie where Activations says.
static void pack_int8_rows(const TensorView& x, const Activations& to, int64_t rows, int thread, int threads) {
  const int64_t columns = x.dims[x.rank - 1];
  const int64_t entry_bytes = to.entry_bytes(kTileHeight);
  const int words = words_per_row(to.corrections.kind) - kSteps;
  const int64_t pieces = to.tiling.tiles * to.groups;
  for (int64_t piece = pieces * thread / threads; piece < pieces * (thread + 1) / threads; ++piece) {
    const int64_t tile = piece / to.groups, group = piece % to.groups;
    unsigned char* const entry = to.tile(tile) + group * entry_bytes;
    for (int h = 0; h < kTileHeight; ++h) {
      const int64_t row = tile * kTileHeight + h;
      unsigned char one[kGroup + 12] = {};  // an entry of one row: its codes are consecutive
      if (row < rows) quantize_group(x, row_offset(x, row), group * kGroup, columns, to.corrections, one, 0, 1);
      memcpy(entry + h * kGroup, one, kGroup);
      for (int word = 0; word < words; ++word) {
        memcpy(entry + kTileHeight * (kGroup + 4 * word) + 4 * h, one + kGroup + 4 * word, 4);
      }
    }
  }
}

// Expands `records` records into vectors of codes (a B tile holds 8 of them, or 4) and their scales. Moves on to the
// next.
template <class Format>
LAPIDARY_INLINE void expand_chunk(const unsigned char*& head, const unsigned char*& record, int64_t& records_left,
                                  const PanelShape& shape, int64_t records, unsigned char* codes, ChunkScales& scales) {
  for (int64_t i = 0; i < records; ++i, codes += 16 * kLine) {
    for (int64_t line = 0; line < Format::record_bytes + Format::record_head_bytes; line += 64) {
      __builtin_prefetch(record + kPrefetchBytes + line, 0, 2);
    }
    for (int line = 0; line < 8; ++line) {
      Bytes even, odd;
      expand_line<Format::width>(record + Format::subscale_bytes, line, even, odd);
      store_bytes(codes + 2 * line * kLine, even);
      store_bytes(codes + (2 * line + 1) * kLine, odd);
    }
    for (int group = 0; group < 2; ++group) {
      const GroupScales loaded = Format::load(head, record, group, shape.bf16_scales);
      store(scales.a[2 * i + group], loaded.a);
      store(scales.b[2 * i + group], loaded.b);
    }
    record += Format::record_bytes;
    if (--records_left > 0) continue;
    head = record;
    record += shape.head_bytes;
    records_left = shape.records_per_block;
  }
}

// Group `kSlot` of four: its product, or for scheme super those of its halves, stored to out[kSlot][halves][16][16].
template <bool kHalves, int kSlot>
LAPIDARY_INLINE void multiply_slot(Tiles& tiles, const unsigned char* entry, const unsigned char* codes, int32_t* out) {
  constexpr int kA = 4 + kSlot % 2, kB = 6 + kSlot % 2;
  constexpr int64_t kTileWords = kTileHeight * kLanes;
  for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
    tiles.zero<kSlot>();
    tiles.load<kA>(entry + half * kGroup / 2, kGroup);
    tiles.load<kB>(codes + half * 4 * kLine, kTileRowBytes);
    tiles.dp_s8u8<kSlot, kA, kB>();
    tiles.store<kSlot>(out + half * kTileWords, kTileRowBytes);
  }
}

// Four groups of one tile of x.
template <bool kHalves>
LAPIDARY_INLINE void multiply_four(Tiles& tiles, const unsigned char* entry, int64_t entry_bytes,
                                   const unsigned char* codes, int groups, int32_t* out) {
  constexpr int64_t kSlotWords = (kHalves ? 2 : 1) * kTileHeight * kLanes;
  multiply_slot<kHalves, 0>(tiles, entry, codes, out);
  multiply_slot<kHalves, 1>(tiles, entry + entry_bytes, codes + 8 * kLine, out + kSlotWords);
  if (groups > 2) {
    multiply_slot<kHalves, 2>(tiles, entry + 2 * entry_bytes, codes + 16 * kLine, out + 2 * kSlotWords);
    multiply_slot<kHalves, 3>(tiles, entry + 3 * entry_bytes, codes + 24 * kLine, out + 3 * kSlotWords);
  }
  tiles.expire();
}

// Adds the terms of `groups` groups whose integer sums are in `dots` to y, 16 rows.
template <class Format>
LAPIDARY_INLINE void add_terms(F32 (&y)[kTileHeight], const int32_t* dots, const unsigned char* entry,
                               int64_t entry_bytes, const ChunkScales& scales, int64_t first_group, int groups) {
  constexpr ScaleScheme kScheme = Format::scheme;
  constexpr bool kHalves = kScheme == ScaleScheme::super;
  constexpr bool kStarts = kCorrections<kScheme> != Corrections::kSum;
  for (int group = 0; group < groups; ++group, entry += entry_bytes) {
    const unsigned char* const words = entry + kTileHeight * kGroup;
    const GroupScales s = {load(scales.a[first_group + group]), load(scales.b[first_group + group])};
#pragma GCC unroll 16
    for (int h = 0; h < kTileHeight; ++h) {
      F32 f[2];
      for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
        I32 dot = load_i32(dots + (half * kTileHeight + h) * kLanes);
        if (kStarts) dot = add(dot, set1_i32(load_as<int32_t>(words + (1 + half) * 4 * kTileHeight + 4 * h)));
        f[half] = to_f32(dot);
      }
      y[h] = group_term<kScheme>(y[h], f[0], kHalves ? f[1] : f[0], s, words + 4 * h, 4 * kTileHeight);
    }
    dots += (kHalves ? 2 : 1) * kTileHeight * kLanes;
  }
}

// Panels [begin, end), in pairs, against all of x.
template <class Format>
static void multiply_int8_panels(Tiles& tiles, const TensorView& w, const PanelShape& shape, const Activations& x,
                                 int64_t rows, const Output& out, int64_t begin, int64_t end) {
  constexpr bool kHalves = Format::scheme == ScaleScheme::super;
  constexpr int64_t kSums = kTileHeight * kLanes;
  alignas(64) unsigned char codes[kChunkRecords * 16 * kLine];
  alignas(64) int32_t dots[2][kGroupsAtOnce * (kHalves ? 2 : 1) * kSums];
  alignas(64) float sums[kMostInt8Tiles][2][kSums];
  ChunkScales scales;
  const int64_t entry_bytes = x.entry_bytes(kTileHeight);
  for (int64_t pair = begin; pair < end; pair += 2) {
    const int panels = end - pair < 2 ? 1 : 2;
    for (int p = 0; p < panels; ++p) {
      const unsigned char* const panel = w.data + (pair + p) * shape.panel_bytes;
      const unsigned char *head = panel, *record = panel + shape.head_bytes;
      int64_t records_left = shape.records_per_block;
      for (int64_t first = 0; first < x.groups; first += 2 * kChunkRecords) {
        const int64_t groups = x.groups - first < 2 * kChunkRecords ? x.groups - first : 2 * kChunkRecords;
        expand_chunk<Format>(head, record, records_left, shape, groups / 2, codes, scales);
        for (int64_t tile = 0; tile < x.tiling.tiles; ++tile) {
          const unsigned char* const entry = x.tile(tile) + first * entry_bytes;
          F32 y[kTileHeight];
          for (int h = 0; h < kTileHeight; ++h) y[h] = first == 0 ? zero() : load(sums[tile][p] + h * kLanes);
          for (int64_t group = 0; group < groups + kGroupsAtOnce; group += kGroupsAtOnce) {
            const int64_t before = group - kGroupsAtOnce;
            if (group < groups) {
              multiply_four<kHalves>(tiles, entry + group * entry_bytes, entry_bytes, codes + group * 8 * kLine,
                                     int(groups - group < kGroupsAtOnce ? groups - group : kGroupsAtOnce),
                                     dots[group / kGroupsAtOnce % 2]);
            }
            if (before >= 0) {
              add_terms<Format>(y, dots[before / kGroupsAtOnce % 2], entry + before * entry_bytes, entry_bytes, scales,
                                before, int(groups - before < kGroupsAtOnce ? groups - before : kGroupsAtOnce));
            }
          }
          for (int h = 0; h < kTileHeight; ++h) store(sums[tile][p] + h * kLanes, y[h]);
        }
      }
      if constexpr (Format::scheme == ScaleScheme::row) {
        for (int64_t tile = 0; tile < x.tiling.tiles; ++tile) {
          apply_row_scales(panel, Format::kBits == 4 ? 8 : 128, x, tile, sums[tile][p]);
        }
      }
    }
    for (int64_t tile = 0; tile < x.tiling.tiles; ++tile) {
      const int64_t row = tile * kTileHeight;
      const int height = int(rows - row < kTileHeight ? rows - row : kTileHeight);
      // finish_tile expects the panels `height` rows apart.
      if (height < kTileHeight) memmove(sums[tile][0] + height * R, sums[tile][1], size_t(height) * R * 4);
      finish_tile(out, pair, panels, row, height, sums[tile][0]);
    }
  }
}

template <class Format>
LAPIDARY_INLINE Activations plan_int8(int64_t rows, const TensorView& w) {
  const int64_t tiles = (rows + kTileHeight - 1) / kTileHeight;
  return {{tiles * kTileHeight, tiles, tiles, kTileHeight},
          panel_columns(w) / kGroup,
          corrections_of<Format>(true),
          nullptr};
}

template <class Format>
static void matmul_int8(const Call& call, Team& team) {
  const TensorView &x = call.in[0], &w = call.in[1];
  const int64_t rows = row_count(x), panels = panel_count(w);
  Activations packed = plan_int8<Format>(rows, w);
  packed.data = team.scratch;
  pack_int8_rows(x, packed, rows, team.thread, team.threads);
  team_barrier(team);
  const PanelShape shape = panel_shape(w);
  const Output out = describe_output(call);
  Tiles tiles(Format::scheme == ScaleScheme::super ? kDepth16Tiles : kDepth32Tiles);
  const int64_t pairs = (panels + 1) / 2;
  for_each_share(team, 0, divide(team.threads, pairs, pairs / 64 + 1), [&](int64_t begin, int64_t end, int64_t) {
    multiply_int8_panels<Format>(tiles, w, shape, packed, rows, out, 2 * begin, 2 * end < panels ? 2 * end : panels);
  });
}

}  // namespace matmul_amx
}  // namespace
}  // namespace lapidary
