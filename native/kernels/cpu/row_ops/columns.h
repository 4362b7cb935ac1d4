// columns.h: columns of every row in another order. Formula and contract: ops/row_ops.h. Include after simd/<isa>.h.
//
// A row is read at random, from L1 or L2, and written in order: a load and a store for each element.
#pragma once
#include "kernels/cpu/column_order.h"
#include "kernels/cpu/row_ops/elementwise.h"

namespace lapidary {
namespace {

// T: as many bytes as an element has. kChecked: some indices are none of the row's columns.
template <class T, bool kChecked>
static void gather_stretch(const unsigned char* row, const int32_t* order, int64_t count, int64_t columns,
                           unsigned char* out) {
  const T* from = reinterpret_cast<const T*>(row);
  T* to = reinterpret_cast<T*>(out);
  for (int64_t j = 0; j < count; ++j) {
    to[j] = !kChecked || (order[j] >= 0 && order[j] < columns) ? from[order[j]] : T(0);
  }
}

static void gather_columns(const Call& call, Team& team) {
  const TensorView &x = call.in[0], &order = call.in[1], &out = call.out[0];
  const int64_t columns = x.dims[x.rank - 1], gathered = out.dims[out.rank - 1];
  const int32_t* indices = order.as<int32_t>();
  const bool valid =
      are_columns(indices, gathered, columns, team, "gather_columns: order: expected a column below %lld, got %lld");
  const bool wide = x.dtype == DType::f32;
  const auto gather = valid ? (wide ? gather_stretch<uint32_t, false> : gather_stretch<uint16_t, false>)
                            : (wide ? gather_stretch<uint32_t, true> : gather_stretch<uint16_t, true>);
  const Rows x_rows = rows_of(x), out_rows = rows_of(out);
  for_pieces(team, row_count(out), gathered, [&](int64_t row, int64_t begin, int64_t count) {
    gather(x_rows.at(row), indices + begin, count, columns, out_rows.at(row) + begin * (wide ? 4 : 2));
  });
}

}  // namespace
}  // namespace lapidary
