// norms.h: RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), the residual add between two of them, and LayerNorm (Ba
// et al. 2016, arXiv 1607.06450). Formulas and contracts: ops/row_ops.h. Include after simd/<isa>.h.
//
// A row is read once from memory and then again from L1, where 2560 f32 take 10 KiB:
//
//   rms_norm       x ──► Σx² ──► x ──────────────► out
//   add_rms_norm   x ──► Σx² ──► x, residual ────► residualOut, ΣresidualOut² ──► residualOut ──► normed
//   layer_norm     x ──► Σx ───► Σ(x − mean)² ───► x ──► out
#pragma once
#include "kernels/cpu/row_ops/float_rows.h"
#include "ops/row_ops.h"

namespace lapidary {
namespace {

// A sum over a row in four vectors: at least 16 partial sums on the narrowest ISA, and enough to hide the four cycles
// of an addition behind one load per cycle.
struct RowSum {
  F32 part[4] = {simd::zero(), simd::zero(), simd::zero(), simd::zero()};

  // part = term(x, count, part) for every vector x of the stretch, whose last one has only `count` columns and then
  // zeros.
  template <class Term>
  LAPIDARY_MEMBER_INLINE void add(const float* x, int64_t n, Term term) {
    F32 a = part[0], b = part[1], c = part[2], d = part[3];
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
      a = term(simd::load(x + i), kLanes, a);
      b = term(simd::load(x + i + kLanes), kLanes, b);
      c = term(simd::load(x + i + 2 * kLanes), kLanes, c);
      d = term(simd::load(x + i + 3 * kLanes), kLanes, d);
    }
    for (; i < n; i += kLanes) {
      const int count = n - i < kLanes ? int(n - i) : kLanes;
      a = term(load_part(x + i, count), count, a);
    }
    part[0] = a, part[1] = b, part[2] = c, part[3] = d;
  }
  LAPIDARY_MEMBER_INLINE void add_squares(const float* x, int64_t n) {
    add(x, n, [](F32 v, int, F32 sum) { return simd::fma(v, v, sum); });
  }
  // In every lane.
  LAPIDARY_MEMBER_INLINE F32 total() const {
    return simd::set1(simd::reduce_add(simd::add(simd::add(part[0], part[1]), simd::add(part[2], part[3]))));
  }
};

LAPIDARY_INLINE const float* stretch_of(const float* optional_row, int64_t begin) {
  return optional_row == nullptr ? nullptr : optional_row + begin;
}

// 1 / √(sum / n + eps)
LAPIDARY_INLINE F32 inverse_root(F32 sum, int64_t n, float eps) {
  const F32 mean = simd::div(sum, simd::set1(float(n)));
  return simd::div(simd::set1(1.f), simd::sqrt(simd::add(mean, simd::set1(eps))));
}

static F32 inverse_rms(const unsigned char* x, DType dtype, int64_t n, float eps) {
  Stretch buffer;
  RowSum squares;
  for_stretches(0, n, [&](int64_t begin, int64_t count) {
    squares.add_squares(read_stretch(x, dtype, begin, count, buffer), count);
  });
  return inverse_root(squares.total(), n, eps);
}

// out = x · factor · (bias + weight); without a weight x · factor.
static void scale_row(const unsigned char* x, DType dtype, F32 factor, const float* weight, F32 bias, int64_t n,
                      unsigned char* out, DType out_dtype) {
  Stretch x_buffer, out_buffer;
  for_stretches(0, n, [&](int64_t begin, int64_t count) {
    const float* from = read_stretch(x, dtype, begin, count, x_buffer);
    float* to = stretch_target(out, out_dtype, begin, out_buffer);
    const float* w = stretch_of(weight, begin);
    if (w == nullptr) {
      for_vectors(count, [=](int64_t i, int lanes) {
        store_part(to + i, simd::mul(load_part(from + i, lanes), factor), lanes);
      });
    } else {
      for_vectors(count, [=](int64_t i, int lanes) {
        const F32 scale = simd::add(bias, load_part(w + i, lanes));
        store_part(to + i, simd::mul(simd::mul(load_part(from + i, lanes), factor), scale), lanes);
      });
    }
    write_stretch(out, out_dtype, begin, count, out_buffer);
  });
}

static void rms_norm(const Call& call, Team& team) {
  using Input = RmsNormInput;
  const RmsNormParams& params = call.params_as<RmsNormParams>();
  const TensorView& x = call.in[Input::x];
  const TensorView& out = call.out[0];
  const int64_t n = out.dims[out.rank - 1];
  if (n == 0) return;
  const Rows x_rows = rows_of(x), out_rows = rows_of(out);
  const Range range = piece_range(team, row_count(out));
  for (int64_t row = range.begin; row < range.end; ++row) {
    const F32 factor = inverse_rms(x_rows.at(row), x.dtype, n, params.eps);
    scale_row(x_rows.at(row), x.dtype, factor, call.in[Input::weight].as<float>(), simd::set1(params.weight_bias), n,
              out_rows.at(row), out.dtype);
  }
}

// out = outScale · (residual + x · factor · (bias + weight)), rounded to the residual's dtype; returns Σout².
static F32 add_row(const unsigned char* x, DType x_dtype, F32 factor, const float* weight, F32 bias,
                   const unsigned char* residual, DType dtype, F32 out_scale, int64_t n, unsigned char* out) {
  Stretch x_buffer, residual_buffer, out_buffer;
  RowSum squares;
  for_stretches(0, n, [&](int64_t begin, int64_t count) {
    const float* from = read_stretch(x, x_dtype, begin, count, x_buffer);
    const float* kept = read_stretch(residual, dtype, begin, count, residual_buffer);
    float* to = stretch_target(out, dtype, begin, out_buffer);
    const float* w = stretch_of(weight, begin);
    for_vectors(count, [=](int64_t i, int lanes) {
      F32 v = simd::mul(load_part(from + i, lanes), factor);
      if (w != nullptr) v = simd::mul(v, simd::add(bias, load_part(w + i, lanes)));
      store_part(to + i, simd::mul(simd::add(load_part(kept + i, lanes), v), out_scale), lanes);
    });
    write_stretch(out, dtype, begin, count, out_buffer);
    squares.add_squares(read_stretch(out, dtype, begin, count, out_buffer), count);
  });
  return squares.total();
}

static void add_rms_norm(const Call& call, Team& team) {
  using Input = AddRmsNormInput;
  const AddRmsNormParams& params = call.params_as<AddRmsNormParams>();
  const TensorView& x = call.in[Input::x];
  const TensorView& out = call.out[0];
  const TensorView& normed = call.out[1];
  const int64_t n = out.dims[out.rank - 1];
  if (n == 0) return;
  const Rows x_rows = rows_of(x), residual_rows = rows_of(call.in[Input::residual]);
  const Rows out_rows = rows_of(out), normed_rows = rows_of(normed);
  const F32 bias = simd::set1(params.weight_bias);
  const Range range = piece_range(team, row_count(out));
  for (int64_t row = range.begin; row < range.end; ++row) {
    F32 factor = simd::set1(1.f);
    if (params.post_norm) factor = inverse_rms(x_rows.at(row), x.dtype, n, params.eps);
    const F32 squares = add_row(x_rows.at(row), x.dtype, factor, call.in[Input::post_weight].as<float>(), bias,
                                residual_rows.at(row), out.dtype, simd::set1(params.out_scale), n, out_rows.at(row));
    if (params.next_norm) {
      scale_row(out_rows.at(row), out.dtype, inverse_root(squares, n, params.eps),
                call.in[Input::pre_weight].as<float>(), bias, n, normed_rows.at(row), normed.dtype);
    }
  }
}

struct Moments {
  F32 mean;
  F32 factor;  // 1 / √(variance + eps)
};
// The variance in a second pass over the differences, which no cancellation harms.
static Moments moments(const unsigned char* x, DType dtype, int64_t n, float eps) {
  Stretch buffer;
  RowSum sum, squares;
  for_stretches(0, n, [&](int64_t begin, int64_t count) {
    sum.add(read_stretch(x, dtype, begin, count, buffer), count,
            [](F32 v, int, F32 total) { return simd::add(v, total); });
  });
  const F32 mean = simd::div(sum.total(), simd::set1(float(n)));
  for_stretches(0, n, [&](int64_t begin, int64_t count) {
    squares.add(read_stretch(x, dtype, begin, count, buffer), count, [=](F32 v, int lanes, F32 total) {
      F32 difference = simd::sub(v, mean);
      if (lanes < kLanes) {
        difference = simd::select(simd::less(simd::iota(), simd::set1_i32(lanes)), difference, simd::zero());
      }
      return simd::fma(difference, difference, total);
    });
  });
  return {mean, inverse_root(squares.total(), n, eps)};
}

static void layer_norm(const Call& call, Team& team) {
  using Input = LayerNormInput;
  const LayerNormParams& params = call.params_as<LayerNormParams>();
  const TensorView& x = call.in[Input::x];
  const TensorView& out = call.out[0];
  const int64_t n = out.dims[out.rank - 1];
  if (n == 0) return;
  const Rows x_rows = rows_of(x), out_rows = rows_of(out);
  const float* weight = call.in[Input::weight].as<float>();
  const float* bias = call.in[Input::bias].as<float>();
  const Range range = piece_range(team, row_count(out));
  Stretch x_buffer, out_buffer;
  for (int64_t row = range.begin; row < range.end; ++row) {
    const Moments of_row = moments(x_rows.at(row), x.dtype, n, params.eps);
    for_stretches(0, n, [&](int64_t begin, int64_t count) {
      const float* from = read_stretch(x_rows.at(row), x.dtype, begin, count, x_buffer);
      float* to = stretch_target(out_rows.at(row), out.dtype, begin, out_buffer);
      const float* w = stretch_of(weight, begin);
      const float* b = stretch_of(bias, begin);
      for_vectors(count, [=](int64_t i, int lanes) {
        F32 v = simd::mul(simd::sub(load_part(from + i, lanes), of_row.mean), of_row.factor);
        if (w != nullptr) v = simd::mul(v, load_part(w + i, lanes));
        if (b != nullptr) v = simd::add(v, load_part(b + i, lanes));
        store_part(to + i, v, lanes);
      });
      write_stretch(out_rows.at(row), out.dtype, begin, count, out_buffer);
    });
  }
}

}  // namespace
}  // namespace lapidary
