// column_order.h: tensors that say in which order columns are taken (ops/row_ops.h, ops/pack_weights.h).
#pragma once
#include "kernels/cpu/kernel.h"

namespace lapidary {
namespace {

// Whether all are columns. Each thread looks for itself, a comparison per column; the first one reports what is none.
// `format` takes the number of columns and the entry.
LAPIDARY_INLINE bool are_columns(const int32_t* order, int64_t count, int64_t columns, Team& team, const char* format) {
  for (int64_t j = 0; j < count; ++j) {
    if (order[j] >= 0 && order[j] < columns) continue;
    if (team.thread == 0) team_fail(team, Code::kIndexOutOfRange, format, columns, order[j]);
    return false;
  }
  return true;
}

}  // namespace
}  // namespace lapidary
