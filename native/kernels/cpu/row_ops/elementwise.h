// elementwise.h: GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415), GeGLU (Shazeer 2020, arXiv 2002.05202), add, soft
// cap and cast. Formulas and contracts: ops/row_ops.h. Include after simd/<isa>.h.
//
// Work is cut into pieces of at most kPieceColumns columns of one row, so that one long row (logits) still spreads over
// the team; tensors without gaps count as one row, so that short rows do not cost a tail each.
#pragma once
#include "kernels/cpu/row_ops/float_rows.h"
#include "kernels/cpu/simd/math.h"
#include "ops/row_ops.h"

namespace lapidary {
namespace {

// 16 KiB of f32: long enough that a piece's own cost (two divisions) does not show.
static constexpr int64_t kPieceColumns = 4 * kStretch;

// body(row, begin, count) for the stretches of this thread's share.
template <class Body>
LAPIDARY_INLINE void for_pieces(const Team& team, int64_t rows, int64_t columns, Body body) {
  const int64_t pieces_per_row = (columns + kPieceColumns - 1) / kPieceColumns;
  const Range range = piece_range(team, rows * pieces_per_row);
  for (int64_t piece = range.begin; piece < range.end; ++piece) {
    const int64_t row = piece / pieces_per_row, begin = piece % pieces_per_row * kPieceColumns;
    const int64_t end = columns - begin < kPieceColumns ? columns : begin + kPieceColumns;
    for_stretches(begin, end, [&](int64_t from, int64_t count) { body(row, from, count); });
  }
}

// out = function(x)
template <class Function>
LAPIDARY_INLINE void map_unary(const Call& call, const Team& team, Function function) {
  const TensorView& x = call.in[0];
  const TensorView& out = call.out[0];
  const bool gapless = is_contiguous(x);
  const int64_t columns = gapless ? element_count(out) : out.dims[out.rank - 1];
  const Rows x_rows = rows_of(x), out_rows = rows_of(out);
  Stretch x_buffer, out_buffer;
  for_pieces(team, gapless ? 1 : row_count(out), columns, [&](int64_t row, int64_t begin, int64_t count) {
    const float* from = read_stretch(x_rows.at(row), x.dtype, begin, count, x_buffer);
    float* to = stretch_target(out_rows.at(row), out.dtype, begin, out_buffer);
    for_vectors(count, [=](int64_t i, int lanes) { store_part(to + i, function(load_part(from + i, lanes)), lanes); });
    write_stretch(out_rows.at(row), out.dtype, begin, count, out_buffer);
  });
}

struct Operand {
  Rows rows;
  DType dtype;
};
// out = function(a, b). `gapless`: a and b are contiguous and of out's shape.
template <class Function>
LAPIDARY_INLINE void map_binary(const Call& call, const Team& team, Operand a, Operand b, bool gapless,
                                Function function) {
  const TensorView& out = call.out[0];
  const int64_t columns = gapless ? element_count(out) : out.dims[out.rank - 1];
  const Rows out_rows = rows_of(out);
  Stretch a_buffer, b_buffer, out_buffer;
  for_pieces(team, gapless ? 1 : row_count(out), columns, [&](int64_t row, int64_t begin, int64_t count) {
    const float* left = read_stretch(a.rows.at(row), a.dtype, begin, count, a_buffer);
    const float* right = read_stretch(b.rows.at(row), b.dtype, begin, count, b_buffer);
    float* to = stretch_target(out_rows.at(row), out.dtype, begin, out_buffer);
    for_vectors(count, [=](int64_t i, int lanes) {
      store_part(to + i, function(load_part(left + i, lanes), load_part(right + i, lanes)), lanes);
    });
    write_stretch(out_rows.at(row), out.dtype, begin, count, out_buffer);
  });
}

static void gelu(const Call& call, Team& team) {
  map_unary(
      call, team, [](F32 x) __attribute__((always_inline)) { return simd::gelu_tanh(x); });
}

static void geglu(const Call& call, Team& team) {
  const TensorView& gate = call.in[0];
  const TensorView& up = call.in[1];
  const Rows gate_rows = rows_of(gate);
  Rows up_rows = gate_rows;
  if (up.present())
    up_rows = rows_of(up);
  else
    up_rows.data += gate.dims[gate.rank - 1] / 2 * info(gate.dtype).block_bytes;
  const bool gapless = up.present() && is_contiguous(gate) && is_contiguous(up);
  map_binary(
      call, team, {gate_rows, gate.dtype}, {up_rows, gate.dtype}, gapless,
      [](F32 g, F32 u) __attribute__((always_inline)) { return simd::mul(simd::gelu_tanh(g), u); });
}

static void add(const Call& call, Team& team) {
  const TensorView& a = call.in[0];
  const TensorView& b = call.in[1];
  // A single row b has stride 0: it is every row.
  const bool gapless = b.rank == a.rank && is_contiguous(a) && is_contiguous(b);
  map_binary(call, team, {rows_of(a), a.dtype}, {rows_of(b), b.dtype}, gapless,
             [](F32 x, F32 y) { return simd::add(x, y); });
}

static void softcap(const Call& call, Team& team) {
  const F32 cap = simd::set1(call.params_as<SoftcapParams>().cap);
  map_unary(
      call, team, [=](F32 x) __attribute__((always_inline)) { return simd::mul(cap, simd::tanh(simd::div(x, cap))); });
}

static void cast(const Call& call, Team& team) {
  map_unary(call, team, [](F32 x) { return x; });
}

}  // namespace
}  // namespace lapidary
