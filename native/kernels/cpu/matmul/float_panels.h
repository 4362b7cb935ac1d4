// float_panels.h: panels of f32, f16, bf16 and sfp8. Weights are exact, x and the sums are f32.
//
//   y = Σ_i acc_i + …,  acc_i = Σ over k ≡ i mod kChains of fma(x[k], w[k], acc_i) in increasing k
//
// The accumulators of an output are as many as one row of x and one panel need to keep up with memory (an fma takes 4
// cycles, R weights of sfp8 come every 1.5): 4 for sfp8 where registers allow, otherwise 2. They are added as (0 + 1) +
// (2 + 3), and sfp8's scale per row is applied last. M does not enter, so a row's result does not depend on its
// neighbours.
//
//   x in tiles of H rows, f32: [K][H], zeros past K; formats of pairs (matmul_avx512_bf16.inl.h) take two columns in a step
//   tile of sums [kChains][P][H] of R lanes: 24 of 32 registers, 12 of 16
//
// Few rows: one panel after the other, each one stream. More: strips.h; panels are read as they are where that costs 1 … 2
// instructions per vector beside 6 fmas. Where it costs more, or tiles have 3 rows, a strip is widened to f32 once for all rows
// (kWidened). Operations: 2·M·N·K. Bytes: the panels once per kRowBlock rows.
#pragma once
#include <type_traits>

#include "kernels/cpu/matmul/decode.h"
#include "kernels/cpu/matmul/strips.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

template <DType dtype>
struct FloatFormat {
  static constexpr DType kDtype = dtype;
  static constexpr int kBytes = dtype == DType::f32 ? 4 : dtype == DType::sfp8 ? 1 : 2;
  static constexpr int64_t kHeadBytes = dtype == DType::sfp8 ? 4 * R : 0;
  static constexpr int kChains = dtype == DType::sfp8 && kRegisters >= 32 ? 4 : 2;
  static constexpr int kTileRows = (kRegisters >= 32 ? 12 : 6) / kChains;
  // Panels of a decode strip: 16-row panels are one stream, narrower ones need two to hide the fma's latency.
  static constexpr int kDecodePanels = R >= 16 ? 1 : 2;
  // Columns that one multiplication takes.
  static constexpr int kPerStep = 1;
  // Nothing to be fetched ahead of its use.
  static constexpr bool kInL1 = false;
  using Vector = F32;

  // kLanes steps of a row of x from `column` on, 32 bits each.
  LAPIDARY_INLINE F32 steps_of(const TensorView& x, int64_t offset, int64_t column, int64_t columns) {
    return load_x(x, offset, column, columns);
  }
  LAPIDARY_INLINE F32 broadcast(const float* step) { return set1(*step); }
  LAPIDARY_INLINE F32 multiply_add(F32 sum, F32 x, F32 w) { return fma(x, w, sum); }

  // The weights of columns k … k + 3, k a multiple of 4. `weights` points behind the head.
  LAPIDARY_INLINE void load4(const unsigned char* weights, int64_t k, F32 (&w)[4]) {
    const unsigned char* p = weights + k * R * kBytes;
    if constexpr (dtype == DType::sfp8) {
      sfp8_to_f32(load_bytes(p), w);
    } else if constexpr (dtype == DType::bf16) {
      for (int pair = 0; pair < 2; ++pair) {
        const Bytes both = load_bytes(p + pair * kLine);
        w[2 * pair] = bf16_even(both);
        w[2 * pair + 1] = bf16_odd(both);
      }
    } else {
      for (int i = 0; i < 4; ++i) {
        w[i] = dtype == DType::f16 ? load_f16(reinterpret_cast<const uint16_t*>(p) + i * R)
                                   : load(reinterpret_cast<const float*>(p) + i * R);
      }
    }
  }
};

// The same weights as f32 in L1: what prepare() leaves of a strip.
template <class Format>
struct WidenedFormat : Format {
  static constexpr DType kDtype = DType::f32;
  static constexpr int kBytes = 4;
  static constexpr int64_t kHeadBytes = 0;
  static constexpr bool kInL1 = true;

  LAPIDARY_INLINE void load4(const unsigned char* weights, int64_t k, F32 (&w)[4]) {
    for (int i = 0; i < 4; ++i) w[i] = load(reinterpret_cast<const float*>(weights) + (k + i) * R);
  }
};
// x as tiles of steps: f32, or pairs of bf16.
struct FloatTiles {
  Tiling tiling;
  int64_t columns;  // as stored in the panels
  int64_t steps;
  float* data;

  LAPIDARY_MEMBER_INLINE int64_t bytes() const { return tiling.rows * steps * 4; }
  LAPIDARY_MEMBER_INLINE float* tile(int64_t index) const { return data + tiling.first_row(index) * steps; }
};

// This thread's share of widening and transposing x.
template <class Format>
static void place_rows(const TensorView& x, const FloatTiles& to, int thread, int threads) {
  static constexpr int64_t kPieceSteps = 512;
  const int64_t columns = x.dims[x.rank - 1];
  const int64_t pieces_per_tile = (to.steps + kPieceSteps - 1) / kPieceSteps;
  const int64_t pieces = to.tiling.tiles * pieces_per_tile;
  for (int64_t piece = pieces * thread / threads; piece < pieces * (thread + 1) / threads; ++piece) {
    const int64_t tile = piece / pieces_per_tile;
    const int height = to.tiling.rows_of(tile);
    const int64_t begin = piece % pieces_per_tile * kPieceSteps;
    const int64_t end = begin + kPieceSteps < to.steps ? begin + kPieceSteps : to.steps;
    for (int h = 0; h < height; ++h) {
      const int64_t offset = row_offset(x, to.tiling.first_row(tile) + h);
      float* step_to = to.tile(tile) + begin * height + h;
      for (int64_t step = begin; step < end; step += kLanes) {
        const F32 values = Format::steps_of(x, offset, step * Format::kPerStep, columns);
        if (height == 1) {
          store(step_to, values);
          step_to += kLanes;
          continue;
        }
        float lanes[kLanes];
        store(lanes, values);
        for (int i = 0; i < kLanes; ++i, step_to += height) *step_to = lanes[i];
      }
    }
  }
}

// Adds `columns` columns (a multiple of 32) of P panels to sums[chain][p][h][R], or starts them at 0. `weights` and `x`
// point at the first column.
template <class Format, int P, int H>
static void float_tile(const unsigned char* weights, int64_t panel_stride, const float* x, int64_t columns, bool start,
                       float* out) {
  constexpr int kChains = Format::kChains, kSteps = 4 / Format::kPerStep;
  F32 sums[kChains][P][H];
  for (int c = 0; c < kChains; ++c) {
    for (int p = 0; p < P; ++p) {
      for (int h = 0; h < H; ++h) sums[c][p][h] = start ? zero() : load(out + ((c * P + p) * H + h) * R);
    }
  }
  for (int64_t k = 0; k < columns; k += 4, x += kSteps * H) {
    constexpr int64_t kStepBytes = 4 * R * Format::kBytes;
    if (!Format::kInL1 && (kStepBytes >= 64 || k * R * Format::kBytes % 64 == 0)) {
      for (int p = 0; p < P; ++p) {
        for (int64_t line = 0; line < kStepBytes; line += 64) {
          __builtin_prefetch(weights + p * panel_stride + k * R * Format::kBytes + kPrefetchBytes + line, 0, 3);
        }
      }
    }
    typename Format::Vector w[P][kSteps];
    for (int p = 0; p < P; ++p) Format::load4(weights + p * panel_stride, k, w[p]);
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      for (int h = 0; h < H; ++h) {
        const auto value = Format::broadcast(x + i * H + h);
        for (int p = 0; p < P; ++p) {
          sums[i % kChains][p][h] = Format::multiply_add(sums[i % kChains][p][h], value, w[p][i]);
        }
      }
    }
  }
  for (int c = 0; c < kChains; ++c) {
    for (int p = 0; p < P; ++p) {
      for (int h = 0; h < H; ++h) store(out + ((c * P + p) * H + h) * R, sums[c][p][h]);
    }
  }
}

// Joins the accumulators of `panels` panels of a tile into the first [panels][height][R] and applies sfp8's scales.
template <class Format>
static void join_chains(const unsigned char* panel, int64_t panel_stride, int panels, int height, float* sums) {
  const int64_t chain = int64_t(panels) * height * R;
  for (int p = 0; p < panels; ++p) {
    F32 scale = zero();
    if constexpr (Format::kDtype == DType::sfp8) scale = load(reinterpret_cast<const float*>(panel + p * panel_stride));
    for (int h = 0; h < height; ++h) {
      float* at = sums + (p * height + h) * R;
      F32 sum = add(load(at), load(at + chain));
      if constexpr (Format::kChains == 4) sum = add(sum, add(load(at + 2 * chain), load(at + 3 * chain)));
      if constexpr (Format::kDtype == DType::sfp8) sum = mul(sum, scale);
      store(at, sum);
    }
  }
}

template <class Format, int P>
LAPIDARY_INLINE void float_tile_of(int height, const unsigned char* weights, int64_t panel_stride, const float* x,
                                   int64_t columns, bool start, float* out) {
  constexpr int kRows = Format::kTileRows;
  switch (height) {
    case 1: return float_tile<Format, P, 1>(weights, panel_stride, x, columns, start, out);
    case 2: return float_tile<Format, P, 2>(weights, panel_stride, x, columns, start, out);
    case 3: return float_tile<Format, P, 3>(weights, panel_stride, x, columns, start, out);
    case 4: return float_tile < Format, P, kRows >= 4 ? 4 : 1 > (weights, panel_stride, x, columns, start, out);
    case 5: return float_tile < Format, P, kRows >= 5 ? 5 : 1 > (weights, panel_stride, x, columns, start, out);
    default: return float_tile < Format, P, kRows >= 6 ? 6 : 1 > (weights, panel_stride, x, columns, start, out);
  }
}

// Panels [begin, end) against the only tile.
template <class Format>
static void decode_float_panels(const TensorView& w, const FloatTiles& x, const Output& out, int64_t begin,
                                int64_t end) {
  constexpr int P = Format::kDecodePanels;
  const int64_t stride = panel_bytes(w);
  const int height = x.tiling.height;
  alignas(64) float sums[2 * Format::kChains * Format::kTileRows * R];
  alignas(64) float pair[2 * Format::kTileRows * R];  // a gate panel waits for its up panel
  for (int64_t panel = begin; panel < end; panel += 2) {
    const int count = end - panel < 2 ? 1 : 2;
    for (int p = 0; p < count;) {
      const unsigned char* first = w.data + (panel + p) * stride;
      const int together = P == 2 && count == 2 ? 2 : 1;
      if (P == 2 && together == 2) {
        float_tile_of<Format, P>(height, first + Format::kHeadBytes, stride, x.data, x.columns, true, sums);
      } else {
        float_tile_of<Format, 1>(height, first + Format::kHeadBytes, stride, x.data, x.columns, true, sums);
      }
      join_chains<Format>(first, stride, together, height, sums);
      memcpy(pair + p * height * R, sums, size_t(together) * height * R * sizeof(float));
      p += together;
    }
    finish_tile(out, panel, count, 0, height, pair);
  }
}

template <class Format>
struct FloatStrips {
  static constexpr bool kWidened =
      Format::kPerStep == 1 && Format::kDtype != DType::f32 && (Format::kDtype == DType::sfp8 || kRegisters < 32);
  using StripFormat = std::conditional_t<kWidened, WidenedFormat<Format>, Format>;
  static constexpr int kSums = Format::kChains;
  // L2 (1 MiB and more): 192 rows × 512 columns of f32 take 384 KiB.
  static constexpr int64_t kRowBlock = 192;
  // L1 (32 KiB and more): 512 columns of two panels are 32 KiB of bf16; a tile of x 12 KiB. Widened, 256 are as much.
  static constexpr int64_t kBlockGroups = kWidened ? 8 : 16;
  static constexpr int64_t kStripBytes = kWidened ? kStripPanels * kBlockGroups * kGroup * R * 4 : 0;

  const TensorView& w;
  const FloatTiles& x;
  const Tiling& tiling;
  const int64_t groups, panels, panel_stride;
  const ColumnBlocks blocks;
  float* const widened;        // kStripBytes
  const unsigned char* strip;  // of the first panel
  int64_t strip_stride;        // to the second
  bool lone;

  LAPIDARY_MEMBER_INLINE FloatStrips(const TensorView& w, const FloatTiles& x, float* widened)
      : w(w),
        x(x),
        tiling(x.tiling),
        groups(x.columns / kGroup),
        panels(panel_count(w)),
        panel_stride(panel_bytes(w)),
        blocks(column_blocks(x.columns / kGroup, kBlockGroups, 1)),
        widened(widened),
        strip(nullptr),
        strip_stride(0),
        lone(false) {}

  LAPIDARY_MEMBER_INLINE void prepare(int64_t panel, int present, int64_t group, int64_t count) {
    strip = w.data + panel * panel_stride + Format::kHeadBytes + group * kGroup * R * Format::kBytes;
    lone = present < kStripPanels;  // the last panel then stands for both; nobody reads the second's outputs
    strip_stride = lone ? 0 : panel_stride;
    if constexpr (kWidened) {
      for (int p = 0; p < present; ++p)
        widen(strip + p * panel_stride, count * kGroup, widened + p * count * kGroup * R);
      strip = reinterpret_cast<const unsigned char*>(widened);
      if (!lone) strip_stride = count * kGroup * R * 4;
    }
  }

  // `columns` columns of a panel as f32; what follows them, or their like of the next row block, is asked for.
  static void widen(const unsigned char* weights, int64_t columns, float* to) {
    constexpr int64_t kColumnBytes = R * Format::kBytes;
    static_assert(4 * kColumnBytes <= 64);  // a line at most in each turn
    for (int64_t k = 0; k < columns; k += 4, to += 4 * R) {
      if (k * kColumnBytes % 64 == 0) __builtin_prefetch(weights + (k + columns) * kColumnBytes, 0, 2);
      F32 w[4];
      Format::load4(weights, k, w);
      for (int i = 0; i < 4; ++i) store(to + i * R, w[i]);
    }
  }

  LAPIDARY_MEMBER_INLINE void multiply(int64_t tile, int height, int64_t group, int64_t count, float* sums) {
    float_tile_of<StripFormat, kStripPanels>(height, strip, strip_stride,
                                             x.tile(tile) + group * kGroup / Format::kPerStep * height, count * kGroup,
                                             group == 0, sums);
  }

  LAPIDARY_MEMBER_INLINE void finish(int64_t panel, int, int64_t, int height, float* sums) {
    join_chains<Format>(w.data + panel * panel_stride, lone ? 0 : panel_stride, kStripPanels, height, sums);
  }
};

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
