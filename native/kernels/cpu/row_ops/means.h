// means.h: the mean of the rows of each sequence. Formula and contract: ops/row_ops.h. Include after simd/<isa>.h.
//
// Work is cut into stretches of the columns of a sequence; a stretch is summed over kRowsPerSum rows at a time, so that the
// rounding of a long sequence's sum does not grow with its length alone. Each element is read once.
#pragma once
#include "kernels/cpu/row_ops/float_rows.h"
#include "ops/row_ops.h"

namespace lapidary {
namespace {

static constexpr int64_t kRowsPerSum = 32;

// sum += x, or = x for the first.
LAPIDARY_INLINE void add_stretch(const float* x, int64_t count, bool first, float* sum) {
  for_vectors(count, [=](int64_t i, int lanes) {
    const F32 v = load_part(x + i, lanes);
    store_part(sum + i, first ? v : simd::add(load_part(sum + i, lanes), v), lanes);
  });
}

static void mean_rows(const Call& call, Team& team) {
  const TensorView& x = call.in[MeanRowsInput::x];
  const TensorView& starts = call.in[MeanRowsInput::starts];
  const TensorView& out = call.out[0];
  const int64_t sequences = out.dims[0], columns = out.dims[1];
  const int64_t stretches = (columns + kStretch - 1) / kStretch;
  const Rows rows = rows_of(x);
  Stretch buffer, part;
  const Range range = piece_range(team, sequences * stretches);
  for (int64_t piece = range.begin; piece < range.end; ++piece) {
    const int64_t sequence = piece / stretches, column = piece % stretches * kStretch;
    const int64_t count = columns - column < kStretch ? columns - column : kStretch;
    float* mean = out.as<float>() + sequence * columns + column;
    const int64_t begin = starts.as<int32_t>()[sequence], end = starts.as<int32_t>()[sequence + 1];
    for_vectors(count, [=](int64_t i, int lanes) { store_part(mean + i, simd::zero(), lanes); });
    if (begin < 0 || end < begin || end > x.dims[0]) {
      team_fail(team, Code::kIndexOutOfRange,
                "mean_rows: starts: expected numbers that do not decrease, up to the rows of x, got %lld, then %lld",
                begin, end);
      continue;
    }
    for (int64_t row = begin; row < end; row += kRowsPerSum) {
      const int64_t last = end - row < kRowsPerSum ? end : row + kRowsPerSum;
      for (int64_t i = row; i < last; ++i)
        add_stretch(read_stretch(rows.at(i), x.dtype, column, count, buffer), count, i == row, part.columns);
      add_stretch(part.columns, count, false, mean);
    }
    if (end == begin) continue;
    const F32 divisor = simd::set1(float(end - begin));
    for_vectors(count, [=](int64_t i, int lanes) {
      store_part(mean + i, simd::div(load_part(mean + i, lanes), divisor), lanes);
    });
  }
}

}  // namespace
}  // namespace lapidary
