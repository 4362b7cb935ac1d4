// tensor_view.h: a tensor as kernels see it. Plain data; whoever holds one keeps the memory alive elsewhere
// (core/buffer.h).
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace lapidary {

static constexpr int kMaxRank = 4;

// How the elements lie in memory.
//   strided  dims and strides, in elements. A block-typed tensor is contiguous: its rows are whole blocks.
//   panels   the streaming form of a weight matrix [N, K] made by pack_weights: opaque outside ops/weight_panels.h.
enum class Layout : uint8_t { strided, panels };

struct TensorView {
  unsigned char* data = nullptr;  // first element; null for an absent optional input
  DType dtype = DType::f32;
  Layout layout = Layout::strided;
  uint8_t rank = 0;
  uint8_t panel_rows = 0;   // panels only: rows interleaved in one panel (16, 8 or 4)
  uint16_t group = 0;       // panels of i4 or i8 only: consecutive k that share a scale; 0: the whole row
  uint8_t scale_dtype = 0;  // panels of i4 or i8 only: DType of the stored scales
  uint8_t flags = 0;        // panels only: PanelFlags of ops/weight_panels.h
  int64_t dims[kMaxRank] = {};
  int64_t strides[kMaxRank] = {};

  LAPIDARY_MEMBER_INLINE bool present() const { return data != nullptr; }
  template <class T>
  LAPIDARY_MEMBER_INLINE T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

LAPIDARY_INLINE int64_t element_count(const TensorView& view) {
  int64_t count = 1;
  for (int i = 0; i < view.rank; ++i) count *= view.dims[i];
  return count;
}

// Bytes of one row (the last dimension) of a contiguous tensor.
LAPIDARY_INLINE int64_t row_bytes(const TensorView& view) {
  return view.dims[view.rank - 1] / info(view.dtype).block * info(view.dtype).block_bytes;
}

// The product of all dimensions but the last: row operations see [rows, columns].
LAPIDARY_INLINE int64_t row_count(const TensorView& view) {
  int64_t count = 1;
  for (int i = 0; i + 1 < view.rank; ++i) count *= view.dims[i];
  return count;
}

LAPIDARY_INLINE bool is_contiguous(const TensorView& view) {
  int64_t expected = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.dims[i] != 1 && view.strides[i] != expected) return false;
    expected *= view.dims[i];
  }
  return true;
}

}  // namespace lapidary
