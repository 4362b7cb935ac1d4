// decode.h: few rows of x (one tile of at most kDecodeRows): integer panels are expanded in registers on their way from
// memory.
//
//              panel p      panel p+1    …  kPanels streams, each read front to back once
//   row h    ┌──────────┐ ┌──────────┐
//   of x     │ R lanes  │ │ R lanes  │      sums [kPanels][H] of R f32 lanes
//            └──────────┘ └──────────┘      per group: DotSum [kPanels][H]
//
// Bytes: the panels once (q4_0: 0.5625 per weight). Operations per 64 q4_0 weights and row: 1 dot product, and 1/8 of a
// conversion, multiplication and fma; per 64 weights 1.5 to expand. Everything else waits for memory, so what matters
// is that enough lines are under way: several streams, each prefetched kPrefetchBytes ahead, across the border to the
// next strip of panels.
#pragma once
#include "kernels/cpu/matmul/epilogue.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// Register budget: kPanels · H sums and as many integer sums.
static constexpr int kDecodeRows = kRegisters >= 32 ? 8 : 4;
template <int H>
static constexpr int kDecodePanels = H > 0 ? 1 : 0;

// Latency (100 ns and more) · 40 GB/s is 4 KiB under way per core; each stream runs this far ahead.
static constexpr int64_t kPrefetchBytes = 5760;

// Adds the products of one group: half of a record's lines.
template <class Format, int P, int H>
LAPIDARY_INLINE void decode_group(F32 (&sums)[P][H], const unsigned char* head, const unsigned char* record,
                                  int64_t panel_stride, const unsigned char* entry, int group, bool bf16) {
  constexpr ScaleScheme kScheme = Format::scheme;
  constexpr Corrections::Kind kKind = kCorrections<kScheme>;
  constexpr bool kHalves = kScheme == ScaleScheme::super;
  constexpr int kBits = Format::kBits;
  constexpr bool kStarts = kKind != Corrections::kSum;
  const unsigned char* words = entry + kSteps * H * 4;

  F32 f0[P][H];
  for (int half = 0; half < (kHalves ? 2 : 1); ++half) {
    DotSum<kBits> dots[P][H];
    int32_t starts[H];
    for (int h = 0; h < H; ++h) {
      starts[h] = kStarts ? load_as<int32_t>(words + (1 + half) * H * 4 + h * 4) : 0;
      for (int p = 0; p < P; ++p) dots[p][h] = dot_start<kBits>(starts[h]);
    }
    const int lines = kHalves ? 2 : 4;
#pragma GCC unroll 4
    for (int line = 0; line < lines; ++line) {
      const int step = half * 4 + 2 * line;
      Bytes even[P], odd[P];
      for (int p = 0; p < P; ++p) {
        expand_line<kBits>(record + p * panel_stride + Format::subscale_bytes, group, step / 2, even[p], odd[p]);
      }
      for (int h = 0; h < H; ++h) {
        const Bytes x = broadcast4(entry + (step * H + h) * 4);
        for (int p = 0; p < P; ++p) dot_step<kBits>(dots[p][h], even[p], x, 2 * line);
      }
      for (int h = 0; h < H; ++h) {
        const Bytes x = broadcast4(entry + ((step + 1) * H + h) * 4);
        for (int p = 0; p < P; ++p) dot_step<kBits>(dots[p][h], odd[p], x, 2 * line + 1);
      }
    }
    for (int p = 0; p < P; ++p) {
      GroupScales scales = {};
      if (half == (kHalves ? 1 : 0))
        scales = Format::load(head + p * panel_stride, record + p * panel_stride, group, bf16);
      for (int h = 0; h < H; ++h) {
        const F32 f = to_f32(dot_finish<kBits>(dots[p][h], starts[h]));
        if (kHalves && half == 0) {
          f0[p][h] = f;
        } else {
          sums[p][h] = group_term<kScheme>(sums[p][h], kHalves ? f0[p][h] : f, f, scales, words + h * 4, H * 4);
        }
      }
    }
  }
}

// One strip of P neighbouring panels against the tile; sums are left in out[p][h][R].
template <class Format, int P, int H>
__attribute__((noinline)) static void decode_strip(const unsigned char* strip, const PanelShape& shape,
                                                   const unsigned char* entry, float* out) {
  constexpr int64_t kRecordBytes = Format::record_bytes;
  constexpr int64_t kEntryBytes = H * 4 * words_per_row(kCorrections<Format::scheme>);
  const int64_t panel_stride = shape.panel_bytes;
  F32 sums[P][H];
  for (int p = 0; p < P; ++p) {
    for (int h = 0; h < H; ++h) sums[p][h] = zero();
  }
  const unsigned char* head = strip;
  const unsigned char* end_of_panel = strip + panel_stride;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const unsigned char* record = head + shape.head_bytes;
    for (int64_t i = 0; i < shape.records_per_block; ++i, record += kRecordBytes) {
      // A record's share of lines, heads included; the last bytes of a panel are followed by the next strip's first.
      const unsigned char* ahead = record + kPrefetchBytes;
      if (ahead >= end_of_panel) ahead += (P - 1) * panel_stride;
      for (int p = 0; p < P; ++p) {
        for (int64_t line = 0; line < kRecordBytes + Format::record_head_bytes; line += 64) {
          __builtin_prefetch(ahead + p * panel_stride + line, 0, 3);
        }
      }
#pragma GCC unroll 1
      for (int group = 0; group < 2; ++group, entry += kEntryBytes) {
        decode_group<Format, P, H>(sums, head, record, panel_stride, entry, group, shape.bf16_scales);
      }
    }
    head = record;
  }
  for (int p = 0; p < P; ++p) {
    for (int h = 0; h < H; ++h) store(out + (p * H + h) * R, sums[p][h]);
  }
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

// decode_strip for one height: one panel, and two if that is worth while.
using StripFunction = void (*)(const unsigned char* strip, const PanelShape& shape, const unsigned char* entry,
                               float* out);
struct StripFunctions {
  StripFunction one, two;
};
template <class Format, int H>
LAPIDARY_INLINE StripFunctions strip_functions() {
  if constexpr (H > kDecodeRows) {
    return {nullptr, nullptr};
  } else if constexpr (kDecodePanels<H> == 2) {
    return {decode_strip<Format, 1, H>, decode_strip<Format, 2, H>};
  } else {
    return {decode_strip<Format, 1, H>, nullptr};
  }
}
template <class Format>
LAPIDARY_INLINE StripFunctions strip_functions(int height) {
  switch (height) {
    case 1: return strip_functions<Format, 1>();
    case 2: return strip_functions<Format, 2>();
    case 3: return strip_functions<Format, 3>();
    case 4: return strip_functions<Format, 4>();
    case 5: return strip_functions<Format, 5>();
    case 6: return strip_functions<Format, 6>();
    case 7: return strip_functions<Format, 7>();
    default: return strip_functions<Format, 8>();
  }
}

// Panels [begin, end) against the only tile.
static void decode_panels(const TensorView& w, const PanelShape& shape, const StripFunctions& functions,
                          const Activations& x, const Output& out, int64_t begin, int64_t end) {
  alignas(64) float sums[2 * kDecodeRows * R];  // a gate panel waits for its up panel
  const int height = x.tiling.height;
  for (int64_t panel = begin; panel < end; panel += 2) {
    const int count = end - panel < 2 ? 1 : 2;
    const unsigned char* strip = w.data + panel * shape.panel_bytes;
    if (count == 2 && functions.two) {
      functions.two(strip, shape, x.data, sums);
    } else {
      for (int p = 0; p < count; ++p)
        functions.one(strip + p * shape.panel_bytes, shape, x.data, sums + p * height * R);
    }
    if (shape.zero_of_rows) {
      for (int p = 0; p < count; ++p) {
        apply_row_scales(strip + p * shape.panel_bytes, shape.zero_of_rows, x, 0, sums + p * height * R);
      }
    }
    finish_tile(out, panel, count, 0, height, sums);
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
