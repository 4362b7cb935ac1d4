// matrix.cuh: any weight matrix, stored or packed, read one element at a time: what embedding, dequantize and refine_logits read.
// matmul has its own readers, which take a lane's share of a record at once (matmul/dequantize.cuh).
#pragma once
#include "core/tensor_view.h"
#include "kernels/cuda/weights/fragment_panels.cuh"
#include "kernels/cuda/weights/stored_weights.cuh"

namespace lapidary::cuda {

struct Matrix {
  const unsigned char* data;
  int64_t row_bytes;  // stored: from one row to the next
  DType dtype;
  bool packed;
  Panels panels;  // packed only
};

static inline Matrix describe_matrix(const TensorView& view) {
  Matrix m = {};
  m.data = view.data;
  m.dtype = view.dtype;
  m.packed = view.layout == Layout::panels;
  if (m.packed) {
    m.panels = describe_panels(view);
  } else {
    m.row_bytes = is_block(view.dtype) ? row_bytes(view) : view.strides[0] * info(view.dtype).block_bytes;
  }
  return m;
}

namespace packed {

// The code, or what it stands for in the table, in column k % 64 of a record, row r of 16. `codes` points behind the sub-scales.
LAPIDARY_DEVICE int code(CodeWidth width, const unsigned char* codes, int r, int column) {
  const int group = column / 32, lane = lane_of(r, column % 32), half = r / 8, c = column % 8;
  if (width == CodeWidth::u8) return int8_t(stored::byte_at(codes, group * 512 + lane * 16 + half * 8 + byte_of(c)));
  const int nibble = nibble_of(c);
  const uint32_t word = dev::load(reinterpret_cast<const uint32_t*>(codes) + lane * 4 + 2 * group + half);
  int code = int(word >> (4 * nibble) & 15);
  if (width == CodeWidth::table4) return stored::table_value(code);
  const uint32_t* planes = reinterpret_cast<const uint32_t*>(codes + 512);
  if (width == CodeWidth::u5) code |= int(dev::load(planes + lane) >> plane_bit(group, half, nibble) & 1) << 4;
  if (width == CodeWidth::u6) code |= int(dev::load(planes + lane * 2 + group) >> plane_pair(half, nibble) & 3) << 4;
  return code;
}

LAPIDARY_DEVICE float half_entry(const unsigned char* head, int entry, int entries, int r, bool bf16) {
  return stored::float_at(head + 2 * entry_of(entry, entries, r), bf16 ? DType::bf16 : DType::f16);
}
LAPIDARY_DEVICE float single_entry(const unsigned char* head, int entry, int entries, int r) {
  return stored::float_at(head + 4 * entry_of(entry, entries, r), DType::f32);
}
LAPIDARY_DEVICE int byte_entry(const unsigned char* head, int entry, int r) {
  return int(stored::byte_at(head, entry_of(entry, 4, r)));
}

LAPIDARY_DEVICE float weight(const Panels& p, int64_t row, int64_t k) {
  using stored::mul;
  const unsigned char* panel = p.data + p.panel_of_row(row) * p.panel_bytes;
  const int r = int((p.gate_up && row >= p.rows / 2 ? row - p.rows / 2 : row) % kPanelRows);
  if (p.codes == CodeWidth::none) {
    const unsigned char* record = panel + p.record_offset(int(k / 32));
    const int column = int(k % 32), lane = lane_of(r, column);
    const int bytes = p.dtype == DType::sfp8 ? 1 : stored::block_bytes(p.dtype);
    const unsigned char* at = record + float_offset(bytes, lane, r / 8, column % 8);
    if (p.dtype != DType::sfp8) return stored::float_at(at, p.dtype);
    return mul(single_entry(panel, 0, 1, r), stored::sfp8_to_f32(stored::byte_at(at, 0)));
  }
  const int record = int(k / kRecordColumns), column = int(k % kRecordColumns), group = column / 32;
  const unsigned char* head = panel + p.head_offset(record);
  const unsigned char* own = panel + p.record_offset(record);  // sub-scales, then codes
  const bool subscales = p.scheme == ScaleScheme::super || p.scheme == ScaleScheme::super_min;
  const float q = float(code(p.codes, own + (subscales ? 64 : 0), r, column));
  switch (p.scheme) {
    case ScaleScheme::pair: {
      const int zero = p.codes == CodeWidth::u4 ? 8 : p.codes == CodeWidth::u5 ? 16 : 0;
      return mul(half_entry(head, group, 2, r, p.bf16_scales), q - float(zero));
    }
    case ScaleScheme::pair_min:
      return dev::fma(half_entry(head, group, 4, r, false), q, half_entry(head, 2 + group, 4, r, false));
    case ScaleScheme::group_zero: {
      const int count = p.group == 32 ? 2 : 1, g = count == 2 ? group : 0;
      const float zero = half_entry(head, count + g, 2 * count, r, p.bf16_scales);
      return mul(half_entry(head, g, 2 * count, r, p.bf16_scales), q - zero);
    }
    case ScaleScheme::super_min: {
      const float s = mul(half_entry(head, 0, 2, r, false), float(byte_entry(own, group, r)));
      const float m = mul(half_entry(head, 1, 2, r, false), float(byte_entry(own, 2 + group, r)));
      return dev::fma(s, q, -m);
    }
    case ScaleScheme::super: {
      const int sub = int8_t(byte_entry(own, column / 16, r));
      return mul(mul(single_entry(head, 0, 1, r), float(sub)), p.codes == CodeWidth::u6 ? q - 32 : q);
    }
    default: {  // row; signed bytes are codes with zero 0, which the head says too
      return mul(single_entry(head, 0, 2, r), q - single_entry(head, 1, 2, r));
    }
  }
}

}  // namespace packed

// Element k of a row, before sfp8's tensor scale of stored matrices: exact, or rounded once (ops/quantize.h).
LAPIDARY_DEVICE float weight_at(const Matrix& m, int64_t row, int64_t k) {
  return m.packed ? packed::weight(m.panels, row, k) : stored::weight(m.dtype, m.data + row * m.row_bytes, k);
}

}  // namespace lapidary::cuda
