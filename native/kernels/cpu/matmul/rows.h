// rows.h: weights that were not packed: row-major f32, f16 or bf16. Correct and reasonable; packing is the fast path.
//
//   y[m][n] = Σ over lanes of acc, acc = Σ of fma(x[m][k …], w[n][k …], acc) in increasing k, kLanes columns at a time
//
//   tile: 4 rows of W × kRowTile rows of x, one accumulator of kLanes columns each; both are read along K
#pragma once
#include "kernels/cpu/matmul/epilogue.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

static constexpr int kWeightTile = 4;
static constexpr int kRowTile = kRegisters >= 32 ? 4 : 2;
// Rows of W that stay in L2 while the rows of x go by.
static constexpr int64_t kWeightRows = 16;

template <DType dtype>
LAPIDARY_INLINE F32 load_columns(const unsigned char* row, int64_t column, int present) {
  if constexpr (dtype == DType::f32) {
    const float* p = reinterpret_cast<const float*>(row) + column;
    return present >= kLanes ? load(p) : load_first(p, present);
  }
  const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + column;
  if constexpr (dtype == DType::f16) return present >= kLanes ? load_f16(p) : load_f16_first(p, present);
  return present >= kLanes ? load_bf16(p) : load_bf16_first(p, present);
}

// Absent rows repeat a present one; their outputs are not stored.
template <DType kWeight, DType kX>
static void rows_tile(const unsigned char* const* w, const unsigned char* const* x, int64_t columns,
                      float (*y)[kWeightTile]) {
  F32 sums[kRowTile][kWeightTile];
  for (auto& row : sums) {
    for (auto& sum : row) sum = zero();
  }
  for (int64_t k = 0; k < columns; k += kLanes) {
    const int present = columns - k < kLanes ? int(columns - k) : kLanes;
    F32 weights[kWeightTile];
    for (int n = 0; n < kWeightTile; ++n) weights[n] = load_columns<kWeight>(w[n], k, present);
    for (int m = 0; m < kRowTile; ++m) {
      const F32 values = load_columns<kX>(x[m], k, present);
      for (int n = 0; n < kWeightTile; ++n) sums[m][n] = fma(values, weights[n], sums[m][n]);
    }
  }
  for (int m = 0; m < kRowTile; ++m) {
    for (int n = 0; n < kWeightTile; ++n) y[m][n] = reduce_add(sums[m][n]);
  }
}

static float gelu_of_one(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, gelu_tanh(set1(x)));
  return lanes[0];
}

// Rows [begin, end) of W, at most kWeightRows, against all of x.
template <DType kWeight, DType kX>
static void rows_block(const TensorView& x, const TensorView& w, const Output& out, int64_t begin, int64_t end) {
  const int64_t rows = row_count(x), columns = w.dims[1];
  for (int64_t row = 0; row < rows; row += kRowTile) {
    const unsigned char* xs[kRowTile];
    for (int m = 0; m < kRowTile; ++m) {
      xs[m] = x.data + row_offset(x, row + m < rows ? row + m : row) * info(kX).block_bytes;
    }
    for (int64_t column = begin; column < end; column += kWeightTile) {
      const unsigned char* ws[kWeightTile];
      for (int n = 0; n < kWeightTile; ++n) {
        ws[n] = w.data + (column + n < end ? column + n : column) * w.strides[0] * info(kWeight).block_bytes;
      }
      float y[kRowTile][kWeightTile];
      rows_tile<kWeight, kX>(ws, xs, columns, y);
      for (int m = 0; m < kRowTile && row + m < rows; ++m) {
        for (int n = 0; n < kWeightTile && column + n < end; ++n) {
          const int64_t at = (row + m) * out.row_stride + column + n;
          float value = out.bias ? y[m][n] + out.bias[column + n] : y[m][n];
          if (out.epilogue == MatmulEpilogue::gelu) value = gelu_of_one(value);
          if (out.residual) value = out.residual[at] + value;
          if (out.bf16) {
            reinterpret_cast<uint16_t*>(out.data)[at] = f32_to_bf16(value);
          } else {
            reinterpret_cast<float*>(out.data)[at] = value;
          }
        }
      }
    }
  }
}

template <DType kWeight>
LAPIDARY_INLINE void rows_block(const TensorView& x, const TensorView& w, const Output& out, int64_t begin,
                                int64_t end) {
  if (x.dtype == DType::bf16) return rows_block<kWeight, DType::bf16>(x, w, out, begin, end);
  rows_block<kWeight, DType::f32>(x, w, out, begin, end);
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
