// decode.h: few rows of x: integer panels are expanded in registers on their way from memory.
//
//              panel p                          panel p+1
//   tile 0   ┌──────────┐                     ┌──────────┐
//   tile 1   │ R lanes  │ then, from L1 or L2 │ R lanes  │    sums [H] of R f32 lanes; per group: DotSum [H]
//   of x     └──────────┘                     └──────────┘
//
// Bytes: the panels once (q4_0: 0.5625 per weight). Operations per 64 q4_0 weights and row: 1 dot product, and 1/8 of a
// conversion, multiplication and fma; per 64 weights and tile 1.5 to expand. With one row everything waits for memory,
// so what matters is that enough lines are under way, always: every record's lines are prefetched kPrefetchBytes ahead,
// across the border to whatever panel this thread reads next (matmul/work_shares.h), and the first ones of the next
// matmul while the ops before it run (matmul_prefetch). From 8 rows on a Zen 5 core is bound by its dot products, which
// share two ports with multiplication and fma, at 80 % of their peak as in matmul/prefill.h.
#pragma once
#include "kernels/cpu/matmul/byte_matrices.h"
#include "kernels/cpu/matmul/epilogue.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// Rows of a tile. Register budget: as many sums, and as many integer sums.
static constexpr int kDecodeRows = kRegisters >= 32 ? 8 : 4;
// Most rows that come here. Beyond, a panel expanded once for all rows (matmul/prefill.h) is cheaper: at 64 rows the
// two are level in AVX-512, and in AVX2 this one is still 8 % ahead (Zen 5, 2560 x 10240, q4_0).
static constexpr int kFewRows = 64;

// Latency (100 ns and more) · 40 GB/s is 4 KiB under way per core; the stream runs this far ahead. 15 records of q4_0
// were the best of 7 … 28 on Zen 5, fetched to L1: to L2 is 5 % slower.
static constexpr int64_t kPrefetchBytes = 8640;

// Cache lines of a record, its head included: those that each line of codes prefetches, and the rest.
template <class Format>
struct RecordLines {
  static constexpr int kAll = (Format::record_bytes + Format::record_head_bytes + 63) / 64;
  static constexpr int kEach = kAll / 8, kRest = kAll % 8;
};

// Integer sums of H rows of x against one panel, for a group or half of one. One row has no neighbour to be paired with.
template <int kBits, int H, bool kPaired = kByteMatrices && (H > 1)>
struct GroupDots {
  DotSum<kBits> sums[H];

  LAPIDARY_MEMBER_INLINE explicit GroupDots(const int32_t (&starts)[H]) {
    for (int h = 0; h < H; ++h) sums[h] = dot_start<kBits>(starts[h]);
  }
  // Steps `step` and step + 1 of an entry, the sums' own steps `own` and own + 1.
  LAPIDARY_MEMBER_INLINE void add(Bytes even, Bytes odd, const unsigned char* entry, int step, int own) {
    for (int h = 0; h < H; ++h) dot_step<kBits>(sums[h], even, broadcast4(entry + codes_at(step, h, H)), own);
    for (int h = 0; h < H; ++h) dot_step<kBits>(sums[h], odd, broadcast4(entry + codes_at(step + 1, h, H)), own + 1);
  }
  LAPIDARY_MEMBER_INLINE I32 lanes(int h, int32_t start) const { return dot_finish<kBits>(sums[h], start); }
};

template <int kBits, int H>
struct GroupDots<kBits, H, true> {
  PairDots<H, 1> dots;

  LAPIDARY_MEMBER_INLINE explicit GroupDots(const int32_t (&starts)[H]) : dots(starts) {}
  LAPIDARY_MEMBER_INLINE void add(Bytes even, Bytes odd, const unsigned char* entry, int step, int) {
    order_steps(even, odd);
    const Bytes w[1][2] = {{even, odd}};
    dots.add(w, entry, step);
  }
  LAPIDARY_MEMBER_INLINE I32 lanes(int h, int32_t) const { return dots.lanes(h, 0); }
};

// Adds the products of one group: half of a record's lines. `ahead`: the record to prefetch, or null. Prefetches lie
// between the loads: nine in a row cost 15 % of the bandwidth of one Zen 5 core.
template <class Format, int H>
LAPIDARY_INLINE void decode_group(F32 (&sums)[H], const unsigned char* head, const unsigned char* record,
                                  const unsigned char* ahead, const unsigned char* entry, int group, bool bf16) {
  constexpr ScaleScheme kScheme = Format::scheme;
  constexpr Corrections::Kind kKind = kCorrections<kScheme>;
  constexpr bool kHalves = kScheme == ScaleScheme::super;
  constexpr int kBits = Format::kBits;
  constexpr bool kStarts = kKind != Corrections::kSum;
  const unsigned char* words = entry + kSteps * H * 4;

  F32 f0[H] = {};
  for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
    int32_t starts[H];
    for (int h = 0; h < H; ++h) starts[h] = kStarts ? load_as<int32_t>(words + (1 + half) * H * 4 + h * 4) : 0;
    GroupDots<kBits, H> dots(starts);
    const int lines = kHalves ? 2 : 4;
#pragma GCC unroll 4
    for (int line = 0; line < lines; ++line) {
      const int step = half * 4 + 2 * line;
      for (int i = 0; ahead && i < RecordLines<Format>::kEach; ++i) {
        __builtin_prefetch(ahead + ((group * 4 + step / 2) * RecordLines<Format>::kEach + i) * 64);
      }
      Bytes even, odd;
      expand_line<Format::width>(record + Format::subscale_bytes, group, step / 2, even, odd);
      dots.add(even, odd, entry, step, 2 * line);
    }
    GroupScales scales = {};
    if (half == (kHalves ? 1 : 0)) scales = Format::load(head, record, group, bf16);
    for (int h = 0; h < H; ++h) {
      const F32 f = to_f32(dots.lanes(h, starts[h]));
      if (kHalves && half == 0) {
        f0[h] = f;
      } else {
        sums[h] = group_term<kScheme>(sums[h], kHalves ? f0[h] : f, f, scales, words + h * 4, H * 4);
      }
    }
  }
}

// One panel against one tile; sums are left in out[h][R]. `next` is the panel that this thread reads after this one, or
// null where this one is in cache already.
template <class Format, int H>
__attribute__((noinline)) static void decode_panel(const unsigned char* panel, const unsigned char* next,
                                                   const PanelShape& shape, const unsigned char* entry, float* out) {
  constexpr int64_t kRecordBytes = Format::record_bytes;
  constexpr int64_t kEntryBytes = H * 4 * words_per_row(kCorrections<Format::scheme>);
  F32 sums[H];
  for (int h = 0; h < H; ++h) sums[h] = zero();
  const unsigned char* const end = panel + shape.panel_bytes;
  const unsigned char* head = panel;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const unsigned char* record = head + shape.head_bytes;
    for (int64_t i = 0; i < shape.records_per_block; ++i, record += kRecordBytes) {
      const unsigned char* ahead = nullptr;
      if (next)
        ahead = record + kPrefetchBytes < end ? record + kPrefetchBytes : next + (record + kPrefetchBytes - end);
      for (int line = 0; ahead && line < RecordLines<Format>::kRest; ++line) {
        __builtin_prefetch(ahead + (RecordLines<Format>::kEach * 8 + line) * 64);
      }
#pragma GCC unroll 1
      for (int group = 0; group < 2; ++group, entry += kEntryBytes) {
        decode_group<Format, H>(sums, head, record, ahead, entry, group, shape.bf16_scales);
      }
    }
    head = record;
  }
  for (int h = 0; h < H; ++h) store(out + h * R, sums[h]);
}

// The row scheme's scale and zero point: y ← s · (y − (z − zero) · Σ Σq · scale of x).
static void apply_row_scales(const unsigned char* panel, int zero_point, const Activations& x, int64_t tile,
                             float* sums) {
  const float* head = reinterpret_cast<const float*>(panel);
  const F32 scale = load(head), offset = sub(load(head + R), set1(float(zero_point)));
  const bool symmetric = !any(less(zero(), abs(offset)));
  const int height = x.tiling.rows_of(tile);
  for (int h = 0; h < height; ++h) {
    F32 y = load(sums + h * R);
    if (!symmetric) {
      F32 sum = zero();
      const unsigned char* words = x.tile(tile) + (kSteps * height + h) * 4;
      for (int64_t group = 0; group < x.groups; ++group, words += x.entry_bytes(height)) {
        sum = fma(set1(load_as<float>(words)), set1(load_as<float>(words + height * 8)), sum);
      }
      y = fnma(offset, sum, y);
    }
    store(sums + h * R, mul(y, scale));
  }
}

using DecodePanel = void (*)(const unsigned char* panel, const unsigned char* next, const PanelShape& shape,
                             const unsigned char* entry, float* out);
template <class Format>
LAPIDARY_INLINE DecodePanel decode_panel_of(int height) {
  switch (height) {
    case 1: return decode_panel<Format, 1>;
    case 2: return decode_panel<Format, 2>;
    case 3: return decode_panel<Format, 3>;
    case 4: return decode_panel<Format, 4>;
    case 5: return decode_panel < Format, kDecodeRows >= 5 ? 5 : 1 > ;
    case 6: return decode_panel < Format, kDecodeRows >= 6 ? 6 : 1 > ;
    case 7: return decode_panel < Format, kDecodeRows >= 7 ? 7 : 1 > ;
    default: return decode_panel < Format, kDecodeRows >= 8 ? 8 : 1 > ;
  }
}

// What decode_panels needs to know of the two heights that tiles have.
struct DecodeHeights {
  DecodePanel taller, shorter;
};
template <class Format>
LAPIDARY_INLINE DecodeHeights decode_heights(const Tiling& tiling) {
  return {decode_panel_of<Format>(tiling.height), decode_panel_of<Format>(tiling.height - 1)};
}

// Panels [begin, end) against all tiles; panel number `next` is what this thread reads after them.
static void decode_panels(const TensorView& w, const PanelShape& shape, const DecodeHeights& heights,
                          const Activations& x, const Output& out, int64_t begin, int64_t end, int64_t next) {
  alignas(64) float sums[2 * kFewRows * R];  // [tiles][2][H][R]: a gate panel waits for its up panel
  const Tiling& tiling = x.tiling;
  for (int64_t panel = begin; panel < end; panel += 2) {
    const int count = end - panel < 2 ? 1 : 2;
    for (int p = 0; p < count; ++p) {
      const unsigned char* at = w.data + (panel + p) * shape.panel_bytes;
      const unsigned char* after = panel + p + 1 < end ? at + shape.panel_bytes : w.data + next * shape.panel_bytes;
      for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
        float* tile_sums = sums + (2 * tiling.first_row(tile) + p * tiling.rows_of(tile)) * R;
        const DecodePanel decode = tile < tiling.taller ? heights.taller : heights.shorter;
        decode(at, tile == 0 ? after : nullptr, shape, x.tile(tile), tile_sums);
        if (shape.zero_of_rows) apply_row_scales(at, shape.zero_of_rows, x, tile, tile_sums);
      }
    }
    for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
      const int64_t row = tiling.first_row(tile);
      finish_tile(out, panel, count, row, tiling.rows_of(tile), sums + 2 * row * R);
    }
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
