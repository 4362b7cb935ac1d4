// matmul: y [M, N] = x [M, K] · W [N, K]ᵀ. The contract, with what each weight format computes, is in ops/matmul.h.
//
// Algorithm, by the form of W:
//   integer panels   x is rounded to int8 per group of 32 columns (matmul/activations.h); exact integer sums per group
//   and row of W,
//                    scaled and added in f32 in increasing k (matmul/panel_codecs.h)
//                      M ≤ kFewRows      matmul/decode.h: panels are expanded in registers on their way from memory
//                      otherwise         matmul/prefill.h: parts of panels are expanded to a strip in L1 and meet all
//                      rows there
//   float panels     f32 fma, weights exact (matmul/float_panels.h)
//   row-major        f32 fma along K (matmul/rows.h)
//
// Lane = row of W everywhere but in rows.h: x is broadcast, nothing is summed across lanes, and a panel's outputs are
// neighbours in y. All M take the same sums in the same order, so a row of y depends neither on M nor on the other
// rows, nor on the threads.
//
// Threads own runs of panels (matmul/work_shares.h); K is never split. x is rounded once by all threads before a
// barrier, or, when it is small, by each thread for itself.
//
// Bytes: W once (small M) or once per row block; x M·K·4 read, M·K·1.25 written and re-read from L2; y once.
// Operations: 2·M·N·K.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/matmul/float_panels.h"
#include "kernels/cpu/matmul/prefill.h"
#include "kernels/cpu/matmul/rows.h"
#include "kernels/cpu/matmul/work_shares.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// Up to this many elements every thread prepares all of x for itself: 2 µs (Zen 5), of the order of a barrier between
// threads that are not quite abreast.
static constexpr int64_t kPrivateElements = 4096;
// Bytes that are worth a claim of their own: 2 µs of a core's share of memory bandwidth.
static constexpr int64_t kPieceBytes = 65536;
// What a thread fetches of its share while earlier ops run: 1 µs of its memory bandwidth, and a small part of L2.
static constexpr int64_t kHeadStartBytes = 32768;

LAPIDARY_INLINE int64_t aligned(int64_t bytes) { return (bytes + 127) / 128 * 128; }

// How scratch is used: x prepared once, or once per thread, then each thread's own memory.
struct Layouts {
  int64_t x_bytes, own_bytes;
  bool private_x;

  LAPIDARY_MEMBER_INLINE size_t bytes(int threads) const {
    return size_t((private_x ? threads : 1) * x_bytes + threads * own_bytes);
  }
  LAPIDARY_MEMBER_INLINE unsigned char* x(const Team& team) const {
    return team.scratch + (private_x ? team.thread * x_bytes : 0);
  }
  LAPIDARY_MEMBER_INLINE unsigned char* own(const Team& team) const {
    return team.scratch + (private_x ? team.threads : 1) * x_bytes + team.thread * own_bytes;
  }
};

// Calls prepare(thread, threads) for x and lets no thread pass before x is complete.
template <class Prepare>
LAPIDARY_INLINE void prepare_x(Team& team, bool private_x, const Prepare& prepare) {
  if (private_x) return prepare(0, 1);
  prepare(team.thread, team.threads);
  team_barrier(team);
}

// How the panels of a decode are shared out. A gate panel goes with its up panel, and the float kernel takes two at a
// time.
struct PanelShares {
  int64_t panels, panel_bytes, unit;
  Shares shares;  // of units
};
LAPIDARY_INLINE PanelShares panel_shares(const TensorView& w, int threads) {
  const int64_t panels = panel_count(w), bytes = panel_bytes(w);
  const int64_t unit = (w.flags & kPanelGateUp) || panel_format(w).codes == CodeWidth::none ? 2 : 1;
  const int64_t units = (panels + unit - 1) / unit, smallest = kPieceBytes / (unit * bytes) + 1;
  // A claim costs 0.25 µs, and a matrix of 1 MB takes 15 (Zen 5, 2 threads): few pieces are not worth theirs.
  const bool claims = units / 8 > 4 * threads * smallest;
  return {panels, bytes, unit, divide(threads, units, smallest, claims ? 7 : 8)};
}
template <class Body>
LAPIDARY_INLINE void for_each_panel_share(Team& team, const TensorView& w, const Body& body) {
  const PanelShares split = panel_shares(w, team.threads);
  for_each_share(team, 0, split.shares, [&](int64_t begin, int64_t end, int64_t next) {
    end *= split.unit;
    body(begin * split.unit, end < split.panels ? end : split.panels, next * split.unit);
  });
}

template <class Kernel>
LAPIDARY_INLINE void run_strips(Team& team, Kernel& kernel, const Output& out, float* sums) {
  const int64_t strips = (kernel.panels + kStripPanels - 1) / kStripPanels;
  for_each_share(team, 0, divide(team.threads, strips, strips / 64 + 1), [&](int64_t begin, int64_t end, int64_t) {
    for (; begin < end; begin += kPassStrips) {
      run_pass(kernel, out, begin, begin + kPassStrips < end ? begin + kPassStrips : end, sums);
    }
  });
}

// ── integer panels
// ────────────────────────────────────────────────────────────────────────────────────────────────────────────

template <class Format>
LAPIDARY_INLINE Corrections corrections_of(bool decode) {
  constexpr ScaleScheme kScheme = Format::scheme;
  if (kScheme == ScaleScheme::group_zero && !decode) return {Corrections::kStart, 16};  // Expanded
  return {kCorrections<kScheme>, Format::zero};
}

template <class Format>
LAPIDARY_INLINE Activations tile_activations(const TensorView& x, const TensorView& w) {
  const int64_t rows = row_count(x);
  const bool decode = rows <= kFewRows;
  return {tile_rows(rows, decode ? kDecodeRows : kTileRows), panel_columns(w) / kGroup, corrections_of<Format>(decode),
          nullptr};
}

template <class Format>
LAPIDARY_INLINE Layouts integer_layouts(const TensorView& w, const Activations& x) {
  const bool decode = x.tiling.rows <= kFewRows;
  const int64_t sums = decode ? 0 : pass_floats(prefill_blocks(x.groups), x.tiling, Prefill<Format>::kRowBlock, 1) * 4;
  return {aligned(x.bytes()), decode ? 0 : aligned(kPrefillStripBytes) + aligned(sums),
          decode && x.tiling.rows * w.dims[1] <= kPrivateElements};
}

template <class Format>
static void matmul_integer(const Call& call, Team& team) {
  const TensorView &x = call.in[0], &w = call.in[1];
  const Output out = describe_output(call);
  Activations tiles = tile_activations<Format>(x, w);
  const Layouts layouts = integer_layouts<Format>(w, tiles);
  tiles.data = layouts.x(team);
  prepare_x(team, layouts.private_x, [&](int thread, int threads) { quantize(x, tiles, thread, threads); });
  if (tiles.tiling.rows > kFewRows) {
    unsigned char* own = layouts.own(team);
    Prefill<Format> kernel(w, tiles, own);
    return run_strips(team, kernel, out, reinterpret_cast<float*>(own + aligned(kPrefillStripBytes)));
  }
  const PanelShape shape = panel_shape(w);
  const DecodeHeights heights = decode_heights<Format>(tiles.tiling);
  for_each_panel_share(team, w, [&](int64_t begin, int64_t end, int64_t next) {
    decode_panels(w, shape, heights, tiles, out, begin, end, next);
  });
}

// ── float panels
// ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

template <class Format>
LAPIDARY_INLINE FloatTiles tile_floats(const TensorView& x, const TensorView& w) {
  const int64_t columns = panel_columns(w);
  return {tile_rows(row_count(x), Format::kTileRows), columns, columns / Format::kPerStep, nullptr};
}

template <class Format>
LAPIDARY_INLINE Layouts float_layouts(const TensorView& w, const FloatTiles& x) {
  using Strips = FloatStrips<Format>;
  const ColumnBlocks blocks = column_blocks(x.columns / kGroup, Strips::kBlockGroups, 1);
  const bool decode = x.tiling.tiles == 1;
  const int64_t sums = decode ? 0 : pass_floats(blocks, x.tiling, Strips::kRowBlock, Format::kChains) * 4;
  return {aligned(x.bytes()), decode ? 0 : aligned(Strips::kStripBytes) + aligned(sums),
          decode && x.tiling.rows * w.dims[1] <= kPrivateElements};
}

template <class Format>
static void matmul_float(const Call& call, Team& team) {
  const TensorView &x = call.in[0], &w = call.in[1];
  const Output out = describe_output(call);
  FloatTiles tiles = tile_floats<Format>(x, w);
  const Layouts layouts = float_layouts<Format>(w, tiles);
  tiles.data = reinterpret_cast<float*>(layouts.x(team));
  prepare_x(team, layouts.private_x, [&](int thread, int threads) { place_rows<Format>(x, tiles, thread, threads); });
  if (tiles.tiling.tiles > 1) {
    unsigned char* own = layouts.own(team);
    FloatStrips<Format> kernel(w, tiles, reinterpret_cast<float*>(own));
    return run_strips(team, kernel, out, reinterpret_cast<float*>(own + aligned(FloatStrips<Format>::kStripBytes)));
  }
  for_each_panel_share(
      team, w, [&](int64_t begin, int64_t end, int64_t) { decode_float_panels<Format>(w, tiles, out, begin, end); });
}

// ── row-major weights
// ─────────────────────────────────────────────────────────────────────────────────────────────────────────

static void matmul_rows(const Call& call, Team& team) {
  const TensorView &x = call.in[0], &w = call.in[1];
  const Output out = describe_output(call);
  const int64_t blocks = (w.dims[0] + kWeightRows - 1) / kWeightRows;
  for_each_share(team, 0, divide(team.threads, blocks, 1), [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kWeightRows;
      const int64_t last = first + kWeightRows < w.dims[0] ? first + kWeightRows : w.dims[0];
      switch (w.dtype) {
        case DType::f32: rows_block<DType::f32>(x, w, out, first, last); break;
        case DType::f16: rows_block<DType::f16>(x, w, out, first, last); break;
        default: rows_block<DType::bf16>(x, w, out, first, last); break;
      }
    }
  });
}

// ── the op
// ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

static void matmul(const Call& call, Team& team) {
  const TensorView& w = call.in[1];
  if (row_count(call.in[0]) == 0) return;
  if (w.layout == Layout::strided) return matmul_rows(call, team);
  switch (w.dtype) {
    case DType::f32: return matmul_float<FloatFormat<DType::f32>>(call, team);
    case DType::f16: return matmul_float<FloatFormat<DType::f16>>(call, team);
    case DType::bf16: return matmul_float<FloatFormat<DType::bf16>>(call, team);
    case DType::sfp8: return matmul_float<FloatFormat<DType::sfp8>>(call, team);
    default: break;
  }
  with_format(w, [&](auto format) { matmul_integer<decltype(format)>(call, team); });
}

template <class Format>
LAPIDARY_INLINE size_t float_scratch(const Call& call, int threads) {
  return float_layouts<Format>(call.in[1], tile_floats<Format>(call.in[0], call.in[1])).bytes(threads);
}

static size_t matmul_scratch(const Call& call, int threads) {
  const TensorView &x = call.in[0], &w = call.in[1];
  if (row_count(x) == 0 || w.layout == Layout::strided) return 0;
  switch (w.dtype) {
    case DType::f32: return float_scratch<FloatFormat<DType::f32>>(call, threads);
    case DType::f16: return float_scratch<FloatFormat<DType::f16>>(call, threads);
    case DType::bf16: return float_scratch<FloatFormat<DType::bf16>>(call, threads);
    case DType::sfp8: return float_scratch<FloatFormat<DType::sfp8>>(call, threads);
    default: break;
  }
  size_t bytes = 0;
  with_format(w, [&](auto format) {
    using Panel = decltype(format);
    bytes = integer_layouts<Panel>(w, tile_activations<Panel>(x, w)).bytes(threads);
  });
  return bytes;
}

// Fetches the head of what this thread will read first, where memory is what matmul waits for.
static void matmul_prefetch(const Call& call, const Team& team) {
  const TensorView& w = call.in[1];
  if (w.layout == Layout::strided || row_count(call.in[0]) > kFewRows) return;
  const PanelShares split = panel_shares(w, team.threads);
  const int64_t begin = team.thread * split.shares.share * split.unit;
  const int64_t end = begin + split.shares.share * split.unit;
  const int64_t bytes = ((end < split.panels ? end : split.panels) - begin) * split.panel_bytes;
  for (int64_t line = 0; line < (bytes < kHeadStartBytes ? bytes : kHeadStartBytes); line += 64) {
    __builtin_prefetch(w.data + begin * split.panel_bytes + line, 0, 2);
  }
}

}  // namespace matmul_cpu

static const Kernel kKernels[] = {
    {OpId::matmul, matmul_cpu::matmul, matmul_cpu::matmul_scratch, matmul_cpu::matmul_prefetch}};

}  // namespace
}  // namespace lapidary
