// prefill.h: many rows of x against integer panels. Part of a strip is expanded once into unsigned codes and f32 scales
// that stay in L1, and tiles of x run over it (strips.h).
//
//   expanded group   codes [8][kStripPanels][4R] u8    a [kStripPanels][R] f32    b likewise, in some schemes
//
// Per group of 32 columns a tile of 6 × 2 takes 96 dot products, 12 conversions, 12 multiplications and 12 fmas. On a
// core whose dot products share two ports with multiplication and fma (Zen 4, Zen 5; Intel's 512-bit ports 0 and 5) 80
// % of the dot product peak is the most that exact scales per group of 32 allow: 73 % with minima or halves (q4_1,
// K-quants), 89 % with scales per row. Loads per 96 dot products: 16 of the strip, 48 broadcasts. Expanding costs about
// 12 cycles per panel and group, a row of x 5: 1 % at 256 rows, 13 % at 16.
#pragma once
#include "kernels/cpu/matmul/decode.h"
#include "kernels/cpu/matmul/strips.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

static constexpr int kTileRows = kRegisters >= 32 ? 6 : 3;
// L1 (32 KiB and more): a strip of 768 columns takes 27 KiB of codes and scales, a tile of x 6 KiB.
static constexpr int64_t kPrefillGroups = 24;

LAPIDARY_INLINE ColumnBlocks prefill_blocks(int64_t groups) { return column_blocks(groups, kPrefillGroups, 2); }
static constexpr int64_t kPrefillStripBytes = (kPrefillGroups + 2) * kStripPanels * kLine * (kSteps + 2);

// The expanded form depends on what a group contributes, not on how it was packed. Zero points per group become part of
// the codes: code − z + 16 is 0 … 31, since z is 0 … 16.
template <class Format>
struct Expanded {
  static constexpr bool group_zero = Format::scheme == ScaleScheme::group_zero;
  static constexpr ScaleScheme scheme = group_zero ? ScaleScheme::pair : Format::scheme;
  static constexpr int bits = group_zero ? 5 : Format::kBits;
};
template <ScaleScheme kScheme>
static constexpr int kScaleVectors = kScheme == ScaleScheme::row    ? 0
                                     : kScheme == ScaleScheme::pair ? 1
                                                                    : 2;
template <ScaleScheme kScheme>
static constexpr int64_t kExpandedBytes = kStripPanels* kLine*(kSteps + kScaleVectors<kScheme>);

// Expands one group of one panel: `to` is its first vector in the strip.
template <class Format>
LAPIDARY_INLINE void expand_group(const unsigned char* head, const unsigned char* record, int group, bool bf16,
                                  unsigned char* to) {
  constexpr int kVectorsOfScales = kScaleVectors<Expanded<Format>::scheme>;
  constexpr int64_t kStep = kStripPanels * kLine;
  const GroupScales scales = Format::load(head, record, group, bf16);
  Bytes shift = {};
  if constexpr (Expanded<Format>::group_zero) shift = spread_bytes(sub(set1_i32(16), to_i32(scales.b)));
#pragma GCC unroll 4
  for (int line = 0; line < 4; ++line) {
    Bytes even, odd;
    expand_line<Format::width>(record + Format::subscale_bytes, group, line, even, odd);
    if constexpr (Expanded<Format>::group_zero) {
      even = add_bytes(even, shift);
      odd = add_bytes(odd, shift);
    }
    order_steps(even, odd);
    store_bytes(to + 2 * line * kStep, even);
    store_bytes(to + (2 * line + 1) * kStep, odd);
  }
  if constexpr (kVectorsOfScales >= 1) store(reinterpret_cast<float*>(to + kSteps * kStep), scales.a);
  if constexpr (kVectorsOfScales == 2) store(reinterpret_cast<float*>(to + (kSteps + 1) * kStep), scales.b);
}

// Expands groups [begin, begin + groups) of a panel, whole records.
template <class Format>
static void expand_panel(const unsigned char* panel, const PanelShape& shape, int64_t begin, int64_t groups,
                         unsigned char* to) {
  constexpr int64_t kGroupBytes = kExpandedBytes<Expanded<Format>::scheme>;
  constexpr int64_t kBytesPerRecord = Format::record_bytes + Format::record_head_bytes;
  const int64_t per_block = shape.records_per_block;
  int64_t left_in_block = per_block - begin / 2 % per_block;
  const unsigned char* head = panel + begin / 2 / per_block * (shape.head_bytes + per_block * Format::record_bytes);
  const unsigned char* record = head + shape.head_bytes + begin / 2 % per_block * Format::record_bytes;
  for (int64_t i = 0; i < groups / 2; ++i) {
    // What follows this panel's part: the next part, or the next panel.
    for (int64_t line = 0; line < kBytesPerRecord; line += 64) {
      __builtin_prefetch(record + groups / 2 * kBytesPerRecord + line, 0, 2);
    }
    expand_group<Format>(head, record, 0, shape.bf16_scales, to);
    expand_group<Format>(head, record, 1, shape.bf16_scales, to + kGroupBytes);
    to += 2 * kGroupBytes;
    record += Format::record_bytes;
    if (--left_in_block == 0) {
      left_in_block = per_block;
      head = record;
      record += shape.head_bytes;
    }
  }
}

// The integer sums of half a group, or of a whole one, of an expanded strip and a tile: kSpan steps.
template <int kBits, int kSpan, int H>
LAPIDARY_INLINE void tile_dots(const unsigned char* strip, const unsigned char* entry, int half,
                               const int32_t (&starts)[H], I32 (&out)[H][kStripPanels]) {
  constexpr int P = kStripPanels;
  if constexpr (kByteMatrices) {
    PairDots<H, P> dots(starts);
#pragma GCC unroll 4
    for (int step = half * kSpan; step < (half + 1) * kSpan; step += 2) {
      Bytes w[P][2];
      for (int p = 0; p < P; ++p) {
        for (int i = 0; i < 2; ++i) w[p][i] = load_bytes(strip + ((step + i) * P + p) * kLine);
      }
      dots.add(w, entry, step);
    }
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < P; ++p) out[h][p] = dots.lanes(h, p);
    }
    return;
  }
  DotSum<kBits> dots[H][P];
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) dots[h][p] = dot_start<kBits>(starts[h]);
  }
#pragma GCC unroll 8
  for (int step = 0; step < kSpan; ++step) {
    const int at = half * kSpan + step;
    Bytes w[P];
    for (int p = 0; p < P; ++p) w[p] = load_bytes(strip + (at * P + p) * kLine);
    for (int h = 0; h < H; ++h) {
      const Bytes x = broadcast4(entry + codes_at(at, h, H));
      for (int p = 0; p < P; ++p) dot_step<kBits>(dots[h][p], w[p], x, step);
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) out[h][p] = dot_finish<kBits>(dots[h][p], starts[h]);
  }
}

// Adds `groups` groups of an expanded strip to sums[p][h][R] of one tile, or starts them at 0.
template <ScaleScheme kScheme, int kBits, int H>
static void prefill_tile(const unsigned char* strip, const unsigned char* entry, int64_t groups, bool start,
                         float* out) {
  constexpr int P = kStripPanels;
  constexpr bool kHalves = kScheme == ScaleScheme::super;
  constexpr bool kStarts = kCorrections<kScheme> != Corrections::kSum;
  constexpr int64_t kEntryBytes = H * 4 * words_per_row(kCorrections<kScheme>);
  F32 sums[H][P];
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) sums[h][p] = start ? zero() : load(out + (p * H + h) * R);
  }
  for (; groups > 0; --groups, strip += kExpandedBytes<kScheme>, entry += kEntryBytes) {
    const unsigned char* words = entry + kSteps * H * 4;
    const float* scale_vectors = reinterpret_cast<const float*>(strip + kSteps * P * kLine);
    F32 f0[H][P];
    for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
      int32_t starts[H];
      for (int h = 0; h < H; ++h) {
        starts[h] = kStarts ? load_as<int32_t>(words + (1 + half) * H * 4 + h * 4) : 0;
      }
      I32 dots[H][P];
      tile_dots<kBits, kHalves ? kSteps / 2 : kSteps>(strip, entry, half, starts, dots);
      for (int p = 0; p < P; ++p) {
        GroupScales scales = {};
        if constexpr (kScaleVectors<kScheme> >= 1) scales.a = load(scale_vectors + p * R);
        if constexpr (kScaleVectors<kScheme> == 2) scales.b = load(scale_vectors + (P + p) * R);
        for (int h = 0; h < H; ++h) {
          const F32 f = to_f32(dots[h][p]);
          if (kHalves && half == 0) {
            f0[h][p] = f;
          } else {
            sums[h][p] = group_term<kScheme>(sums[h][p], kHalves ? f0[h][p] : f, f, scales, words + h * 4, H * 4);
          }
        }
      }
    }
  }
  for (int h = 0; h < H; ++h) {
    for (int p = 0; p < P; ++p) store(out + (p * H + h) * R, sums[h][p]);
  }
}

template <class Format>
struct Prefill {
  static constexpr int kSums = 1;
  // L2 (1 MiB and more): 384 rows × 768 columns take 360 KiB with their scales.
  static constexpr int64_t kRowBlock = 384;

  const TensorView& w;
  const Activations& x;
  const PanelShape shape;
  const Tiling& tiling;
  const int64_t groups, panels;
  const ColumnBlocks blocks;
  unsigned char* const strip;  // kExpandedBytes per group

  LAPIDARY_MEMBER_INLINE Prefill(const TensorView& w, const Activations& x, unsigned char* strip)
      : w(w),
        x(x),
        shape(panel_shape(w)),
        tiling(x.tiling),
        groups(x.groups),
        panels(panel_count(w)),
        blocks(prefill_blocks(x.groups)),
        strip(strip) {}

  LAPIDARY_MEMBER_INLINE void prepare(int64_t panel, int present, int64_t group, int64_t count) {
    for (int p = 0; p < kStripPanels; ++p) {  // an absent panel repeats the last one; nobody reads its outputs
      const int64_t from = panel + (p < present ? p : present - 1);
      expand_panel<Format>(w.data + from * shape.panel_bytes, shape, group, count, strip + p * kLine);
    }
  }

  LAPIDARY_MEMBER_INLINE void multiply(int64_t tile, int height, int64_t group, int64_t count, float* sums) {
    constexpr ScaleScheme kScheme = Expanded<Format>::scheme;
    constexpr int kBits = Expanded<Format>::bits;
    const unsigned char* entry = x.tile(tile) + group * x.entry_bytes(height);
    const bool start = group == 0;
    switch (height) {
      case 1: return prefill_tile<kScheme, kBits, 1>(strip, entry, count, start, sums);
      case 2: return prefill_tile<kScheme, kBits, 2>(strip, entry, count, start, sums);
      case 3: return prefill_tile<kScheme, kBits, 3>(strip, entry, count, start, sums);
      case 4: return prefill_tile < kScheme, kBits, kTileRows >= 4 ? 4 : 1 > (strip, entry, count, start, sums);
      case 5: return prefill_tile < kScheme, kBits, kTileRows >= 5 ? 5 : 1 > (strip, entry, count, start, sums);
      default: return prefill_tile < kScheme, kBits, kTileRows >= 6 ? 6 : 1 > (strip, entry, count, start, sums);
    }
  }

  LAPIDARY_MEMBER_INLINE void finish(int64_t panel, int present, int64_t tile, int height, float* sums) {
    if (shape.zero_of_rows) {
      for (int p = 0; p < present; ++p) {
        apply_row_scales(w.data + (panel + p) * shape.panel_bytes, shape.zero_of_rows, x, tile, sums + p * height * R);
      }
    }
  }
};

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
