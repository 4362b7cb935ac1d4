// rows.cuh: rows of f32, bf16 or f16 as kernels of row_ops read and write them: eight elements at a time, in f32.
//
// Eight elements are one access of 16 bytes (two in f32) where the rows are aligned to 16 bytes, as those of models are; other rows
// and the end of a row that eight does not divide are read element by element. Where a tensor allows what is decided once, at launch.
#pragma once
#include "kernels/cuda/device/device.h"
#include "ops/call.h"

namespace lapidary::cuda {

static constexpr int kChunk = 8;

// A tensor [.., n] whose leading dimensions are strided at will.
struct Rows {
  unsigned char* data;
  int64_t strides[3];  // bytes, of the leading dimensions, the last first
  int64_t dims[3];     // of them; 1 where there are fewer
  DType dtype;
  bool aligned;  // every row begins at a multiple of 16 bytes
};

inline Rows rows_of(const TensorView& view) {
  Rows rows = {view.data, {}, {1, 1, 1}, view.dtype, true};
  const int64_t element = info(view.dtype).block_bytes;
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (int axis = view.rank - 2, i = 0; axis >= 0; --axis, ++i) {
    rows.dims[i] = view.dims[axis];
    rows.strides[i] = view.strides[axis] * element;
    if (view.dims[axis] > 1) aligned = aligned && rows.strides[i] % 16 == 0;
  }
  rows.aligned = aligned;
  return rows;
}

LAPIDARY_DEVICE const unsigned char* row_at(const Rows& rows, int64_t row) {
  if (rows.dims[1] == 1 && rows.dims[2] == 1) return rows.data + row * rows.strides[0];
  const int64_t outer = row / rows.dims[0];
  return rows.data + row % rows.dims[0] * rows.strides[0] + outer % rows.dims[1] * rows.strides[1] +
         outer / rows.dims[1] * rows.strides[2];
}
LAPIDARY_DEVICE unsigned char* writable_row_at(const Rows& rows, int64_t row) {
  return const_cast<unsigned char*>(row_at(rows, row));
}

LAPIDARY_DEVICE float read_element(const unsigned char* row, DType dtype, int64_t column) {
  if (dtype == DType::f32) return dev::load(reinterpret_cast<const float*>(row) + column);
  const uint16_t bits = dev::load(reinterpret_cast<const uint16_t*>(row) + column);
  return dtype == DType::bf16 ? dev::to_float(dev::Bf16{bits}) : dev::to_float(dev::F16{bits});
}

LAPIDARY_DEVICE void write_element(unsigned char* row, DType dtype, int64_t column, float value) {
  if (dtype == DType::f32) return dev::store(reinterpret_cast<float*>(row) + column, value);
  const uint16_t bits = dtype == DType::bf16 ? dev::to_bf16(value).bits : dev::to_f16(value).bits;
  dev::store(reinterpret_cast<uint16_t*>(row) + column, bits);
}

// Columns column … column + 7; those from n on are zeros.
LAPIDARY_DEVICE void read_chunk(const unsigned char* row, DType dtype, bool aligned, int64_t column, int64_t n,
                                float (&v)[kChunk]) {
  if (!aligned || column + kChunk > n) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = column + i < n ? read_element(row, dtype, column + i) : 0.0f;
    return;
  }
  if (dtype == DType::f32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const dev::Words4 words = dev::load_stream_16(row + (column + 4 * half) * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[4 * half + i] = dev::bit_cast<float>(words.word[i]);
    }
    return;
  }
  const dev::Words4 words = dev::load_stream_16(row + column * 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool bf16 = dtype == DType::bf16;
    v[2 * i] = bf16 ? dev::low_bf16(words.word[i]) : dev::low_f16(words.word[i]);
    v[2 * i + 1] = bf16 ? dev::high_bf16(words.word[i]) : dev::high_f16(words.word[i]);
  }
}

LAPIDARY_DEVICE void write_chunk(unsigned char* row, DType dtype, bool aligned, int64_t column, int64_t n,
                                 const float (&v)[kChunk]) {
  if (!aligned || column + kChunk > n) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (column + i < n) write_element(row, dtype, column + i, v[i]);
    }
    return;
  }
  if (dtype == DType::f32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      dev::Words4 words;
#pragma unroll
      for (int i = 0; i < 4; ++i) words.word[i] = dev::bit_cast<uint32_t>(v[4 * half + i]);
      dev::store(reinterpret_cast<dev::Words4*>(row + (column + 4 * half) * 4), words);
    }
    return;
  }
  dev::Words4 words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words.word[i] =
        dtype == DType::bf16 ? dev::pack_bf16(v[2 * i], v[2 * i + 1]) : dev::pack_f16(v[2 * i], v[2 * i + 1]);
  }
  dev::store(reinterpret_cast<dev::Words4*>(row + column * 2), words);
}

// What storing as `dtype` makes of a value.
LAPIDARY_DEVICE float rounded(float value, DType dtype) {
  if (dtype == DType::bf16) return dev::to_float(dev::to_bf16(value));
  if (dtype == DType::f16) return dev::to_float(dev::to_f16(value));
  return value;
}

}  // namespace lapidary::cuda
