// row_stretch.h: a row of any matrix, stored or packed, scaled and written as f32 or bf16. Include after simd/<isa>.h.
#pragma once
#include "kernels/cpu/weights/panel_rows.h"
#include "kernels/cpu/weights/stored_formats.h"

namespace lapidary {
namespace {

// Columns expanded at a time: a whole K-quant block, and 1 KB of f32 that never leaves L1.
static constexpr int kStretch = 256;

// to[k] = scale · from[k], rounded to `dtype` (f32 or bf16).
LAPIDARY_INLINE void store_scaled(const float* from, int64_t columns, float scale, DType dtype, unsigned char* to) {
  constexpr int kLanes = simd::kLanes;
  const simd::F32 factor = simd::set1(scale);
  for (int64_t k = 0; k < columns; k += kLanes) {
    const int count = columns - k < kLanes ? int(columns - k) : kLanes;
    const simd::F32 value = simd::mul(simd::load_first(from + k, count), factor);
    if (dtype == DType::bf16)
      simd::store_bf16_first(reinterpret_cast<uint16_t*>(to) + k, value, count);
    else
      simd::store_first(reinterpret_cast<float*>(to) + k, value, count);
  }
}

// Columns [k, k + columns) of a row of any matrix as f32; at most kStretch columns.
LAPIDARY_INLINE void read_stretch(const TensorView& matrix, int64_t row, int64_t k, int64_t columns, float* values) {
  if (matrix.layout == Layout::panels)
    panel_rows::row_to_f32(matrix, row, k, columns, values);
  else
    stored::row_to_f32(matrix.dtype, stored::row_address(matrix, row), k, columns, values);
}

[[maybe_unused]] static void expand_row(const TensorView& matrix, int64_t row, float scale, DType dtype,
                                        unsigned char* to) {
  alignas(64) float values[kStretch];
  for (int64_t k = 0; k < matrix.dims[1]; k += kStretch) {
    const int64_t columns = matrix.dims[1] - k < kStretch ? matrix.dims[1] - k : kStretch;
    read_stretch(matrix, row, k, columns, values);
    store_scaled(values, columns, scale, dtype, to + k * info(dtype).block_bytes);
  }
}

}  // namespace
}  // namespace lapidary
