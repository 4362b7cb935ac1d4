// bf16_panels.h: weights in any panel format (ops/weight_panels.h), rounded to bf16, as B tiles.
//
//   two panels of 16 rows × a stretch of K   →   [2][K/32][16 pairs of columns][16 rows][2] bf16
//
// A weight's value is computed in f32 and then rounded to bf16, to nearest even. Roundings before that: none for q4_0,
// q5_0, q8_0, iq4 and groups of i4 (16-bit scales times small integers are exact), one where a minimum is added or the
// scale is an f32, two for q3_k and q6_k.
//
// The work comes in lines of 8 columns × 16 rows, so that it can be spread between the products of the stretch before:
// a line is some 40 instructions without an unforeseeable branch, and a tile product occupies one port for one cycle in
// sixteen. Cost where nothing hides it: 0.16 cycles per weight (10 instructions per 32 weights on two ports;
// docs/amx.md).
#pragma once
#include "kernels/cpu/matmul/panel_codecs.h"
#include "kernels/cpu/matmul_amx/bf16_rows.h"

namespace lapidary {
namespace {
namespace matmul_amx {

static constexpr int kLineColumns = 8;
static constexpr int64_t kLineOut = kLineColumns / 2 * kTileRowBytes;

// A place in a panel.
struct PanelCursor {
  const unsigned char* head;           // of the block
  const unsigned char* record;         // its sub-scales; float formats: the next line
  int64_t records_left;                // in the block
  int line;                            // of the record
  alignas(64) float scale[4][kLanes];  // of the record: how codes become values
  alignas(64) float bias[4][kLanes];
};

// ── integer formats ─────────────────────────────────────────────────────────────────────────────────────────────────

// f = byte_fraction(code) = 1 + code / 256, and
//   fused        value = f · 256s − s · (256 + zero)      exact: s has 11 bits, 256 + zero at most 9
//   minimum      value = (f − 1) · 256s + m
//   super, row   value = (f − 1 − zero / 256) · 256s
template <class F>
struct IntegerCodec {
  static constexpr ScaleScheme kScheme = F::scheme;
  static constexpr bool kFused = kScheme == ScaleScheme::pair || kScheme == ScaleScheme::group_zero;
  static constexpr int kZero = F::kBits == 8 ? 128 : F::zero;

  LAPIDARY_INLINE void seek(PanelCursor& at, const PanelShape& shape, const unsigned char* panel, int64_t column) {
    const int64_t record = column / kRecordColumns, within = record % shape.records_per_block;
    at.head = panel + record / shape.records_per_block * (shape.head_bytes + shape.records_per_block * F::record_bytes);
    at.record = at.head + shape.head_bytes + within * F::record_bytes;
    at.records_left = shape.records_per_block - within;
    at.line = 0;
  }

  LAPIDARY_INLINE void load_scales(PanelCursor& at, bool bf16) {
    const F32 wide = set1(256.f);
    if constexpr (kScheme == ScaleScheme::row) {
      const float* head = reinterpret_cast<const float*>(at.head);
      store(at.scale[0], mul(simd::load(head), wide));
      store(at.bias[0], fma(simd::load(head + kLanes), set1(0x1p-8f), set1(1.f)));
      return;
    }
    for (int group = 0; group < 2; ++group) {
      const GroupScales scales = F::load(at.head, at.record, group, bf16);
      if constexpr (kScheme == ScaleScheme::super) {
        store(at.scale[2 * group], mul(scales.a, wide));
        store(at.scale[2 * group + 1], mul(scales.b, wide));
      } else {
        store(at.scale[group], mul(scales.a, wide));
      }
      if constexpr (kScheme == ScaleScheme::pair) store(at.bias[group], mul(scales.a, set1(-256.f - kZero)));
      if constexpr (kScheme == ScaleScheme::group_zero)
        store(at.bias[group], mul(scales.a, sub(set1(-256.f), scales.b)));
      if constexpr (F::has_min) store(at.bias[group], scales.b);
    }
  }

  LAPIDARY_INLINE F32 value(F32 f, F32 scale, F32 bias) {
    if constexpr (kFused) return fma(f, scale, bias);
    if constexpr (F::has_min) return fma(sub(f, set1(1.f)), scale, bias);
    if constexpr (kScheme == ScaleScheme::super) return mul(sub(f, set1(1.f + 0x1p-8f * kZero)), scale);
    return mul(sub(f, bias), scale);
  }

  // A vector of codes is 4 columns × 16 rows: two rows of the B tile.
  LAPIDARY_INLINE void store_vector(Bytes codes, F32 scale, F32 bias, unsigned char* out) {
    store_bytes(out,
                bf16_pairs(value(byte_fraction<0>(codes), scale, bias), value(byte_fraction<1>(codes), scale, bias)));
    store_bytes(out + kTileRowBytes,
                bf16_pairs(value(byte_fraction<2>(codes), scale, bias), value(byte_fraction<3>(codes), scale, bias)));
  }

  // The next line: 4 rows of the B tile. `ahead`: bytes from here to the same place in the stretch after the next one.
  LAPIDARY_INLINE void line(PanelCursor& at, const PanelShape& shape, int64_t ahead, unsigned char* out) {
    if (at.line == 0) load_scales(at, shape.bf16_scales);
    Bytes even, odd;
    expand_line<F::width>(at.record + F::subscale_bytes, at.line, even, odd);
    constexpr int kLinesPerScale = kScheme == ScaleScheme::row ? 8 : kScheme == ScaleScheme::super ? 2 : 4;
    const int group = at.line / kLinesPerScale;
    const F32 scale = simd::load(at.scale[group]), bias = simd::load(at.bias[group]);
    store_vector(even, scale, bias, out);
    store_vector(odd, scale, bias, out + 2 * kTileRowBytes);
    // A record's eighth, its head's included, in whole cache lines.
    constexpr int64_t kShare = (F::record_bytes + F::record_head_bytes + 7) / 8;
    for (int64_t byte = 0; byte < kShare; byte += 64) {
      __builtin_prefetch(at.record + ahead + at.line * kShare + byte, 0, 2);
    }
    if (++at.line < 8) return;
    at.line = 0;
    at.record += F::record_bytes;
    if (--at.records_left > 0) return;
    at.head = at.record;
    at.record += shape.head_bytes;
    at.records_left = shape.records_per_block;
  }
};

// ── float formats ───────────────────────────────────────────────────────────────────────────────────────────────────

// Copied: a panel is a B tile already, but 4 KB pages of it would come and go in L1 and L2 with everything else that
// streams.
struct Bf16Codec {
  LAPIDARY_INLINE void seek(PanelCursor& at, const PanelShape&, const unsigned char* panel, int64_t column) {
    at.record = panel + column * R * 2;
  }
  LAPIDARY_INLINE void line(PanelCursor& at, const PanelShape&, int64_t ahead, unsigned char* out) {
    for (int row = 0; row < 4; ++row, at.record += kTileRowBytes) {
      store_bytes(out + row * kTileRowBytes, load_bytes(at.record));
      __builtin_prefetch(at.record + ahead, 0, 2);
    }
  }
};

struct F16Codec {
  LAPIDARY_INLINE void seek(PanelCursor& at, const PanelShape&, const unsigned char* panel, int64_t column) {
    at.record = panel + column * R * 2;
  }
  LAPIDARY_INLINE void line(PanelCursor& at, const PanelShape&, int64_t ahead, unsigned char* out) {
    for (int row = 0; row < 4; ++row, at.record += kTileRowBytes) {
      const uint16_t* columns = reinterpret_cast<const uint16_t*>(at.record);
      store_bytes(out + row * kTileRowBytes, bf16_pairs(load_f16(columns), load_f16(columns + R)));
      __builtin_prefetch(at.record + ahead, 0, 2);
    }
  }
};

struct Sfp8Codec {
  LAPIDARY_INLINE void seek(PanelCursor& at, const PanelShape&, const unsigned char* panel, int64_t column) {
    at.record = panel + R * 4 + column * R;
    store(at.scale[0], simd::load(reinterpret_cast<const float*>(panel)));
  }
  LAPIDARY_INLINE void line(PanelCursor& at, const PanelShape&, int64_t ahead, unsigned char* out) {
    const F32 scale = simd::load(at.scale[0]);
    for (int half = 0; half < 2; ++half, at.record += kLine, out += 2 * kTileRowBytes) {
      F32 values[4];
      sfp8_to_f32(load_bytes(at.record), values);
      store_bytes(out, bf16_pairs(mul(values[0], scale), mul(values[1], scale)));
      store_bytes(out + kTileRowBytes, bf16_pairs(mul(values[2], scale), mul(values[3], scale)));
      __builtin_prefetch(at.record + ahead, 0, 2);
    }
  }
};

// ── a stretch of two panels ─────────────────────────────────────────────────────────────────────────────────────────

// The work of filling a B buffer, done a few lines at a time.
struct Stretch {
  PanelShape shape;
  const unsigned char *first, *second;  // panels; `second` is null where the matrix ends with the first
  int64_t column;                       // where in them
  int64_t ahead;                        // bytes to the same place in the stretch after this one
  int64_t lines;                        // of one panel
  int64_t done;                         // of both
  unsigned char* out;
  PanelCursor at;
};

using AdvanceFunction = void (*)(Stretch&, int64_t);

// Does the next `lines` lines, or what is left. Not inlined: called between tile products, for whose registers it has
// no use.
template <class Codec>
__attribute__((noinline)) static void advance(Stretch& stretch, int64_t lines) {
  const int64_t both = 2 * stretch.lines;
  const int64_t end = stretch.done + lines < both ? stretch.done + lines : both;
  unsigned char* out = stretch.out + stretch.done * kLineOut;
  for (; stretch.done < end; ++stretch.done, out += kLineOut) {
    if (stretch.done == 0) Codec::seek(stretch.at, stretch.shape, stretch.first, stretch.column);
    if (stretch.done >= stretch.lines && stretch.second == nullptr) {
      for (int row = 0; row < 4; ++row) store_bytes(out + row * kTileRowBytes, Bytes(zero_i32()));
      continue;
    }
    if (stretch.done == stretch.lines) Codec::seek(stretch.at, stretch.shape, stretch.second, stretch.column);
    Codec::line(stretch.at, stretch.shape, stretch.ahead, out);
  }
}

}  // namespace matmul_amx
}  // namespace
}  // namespace lapidary
