// panel_rows.h: one row of a packed matrix (ops/weight_panels.h) as f32: what embedding and dequantize read. matmul
// has its own reader, which takes all rows of a panel at once.
//
// A row's codes lie R words apart, so that with R = 16 reading one touches every cache line of its panel. It is still
// cheap: a q4_0 row of 2560 columns from cold memory takes 1.7 µs, the same row as stored 1.2 µs (Zen 5, one thread).
#pragma once
#include "kernels/cpu/weights/stored_formats.h"
#include "ops/weight_panels.h"

namespace lapidary {
namespace {
namespace panel_rows {

static constexpr int R = simd::kLanes;
static constexpr int kLine = 4 * R;  // bytes of a line: one word of every row

// Expands the 64 codes of row `r` in one record.
LAPIDARY_INLINE void row_codes(const unsigned char* record, CodeWidth width, int r, uint8_t* codes) {
  if (width == CodeWidth::u8) {
    for (int v = 0; v < 16; ++v) memcpy(codes + 4 * v, record + v * kLine + 4 * r, 4);
    return;
  }
  for (int line = 0; line < 8; ++line) {
    const uint32_t word = stored::load_u32(record + line * kLine + 4 * r);
    const uint32_t low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
    memcpy(codes + 8 * line, &low, 4);
    memcpy(codes + 8 * line + 4, &high, 4);
  }
  if (width == CodeWidth::table4) return stored::look_up(codes, 64);
  const unsigned char* planes = record + 8 * kLine;
  if (width == CodeWidth::u5) {
    for (int v = 0; v < 16; ++v) {
      const int bits = planes[v * (R / 2) + r / 2] >> (4 * (r & 1));
      for (int i = 0; i < 4; ++i) codes[4 * v + i] |= uint8_t((bits >> i & 1) << 4);
    }
  }
  if (width == CodeWidth::u6) {
    for (int v = 0; v < 16; ++v) {
      for (int i = 0; i < 4; ++i) {
        codes[4 * v + i] |= uint8_t((planes[v / 4 * kLine + 4 * r + i] >> (2 * (v % 4)) & 3) << 4);
      }
    }
  }
}

// Entry `index` of a head of 16-bit scales.
LAPIDARY_INLINE float half_entry(const unsigned char* head, int index, int r, bool bf16) {
  const uint16_t bits = stored::load_u16(head + 2 * (index * R + r));
  return bf16 ? simd::bf16_to_f32(bits) : simd::f16_to_f32(bits);
}
LAPIDARY_INLINE float float_entry(const unsigned char* head, int index, int r) {
  return stored::load_scale(head + 4 * (index * R + r), DType::f32);
}

// The 64 weights of row `r` in record `index` of a panel.
static void record_to_f32(const TensorView& packed, const PanelFormat& format, const unsigned char* panel,
                          int64_t index, int r, float* values) {
  const int per_block = format.records_per_block;
  const int64_t record_bytes = R * (format.subscale_bytes + format.code_bytes);
  const int64_t block = per_block ? index / per_block : 0, within = per_block ? index % per_block : index;
  const unsigned char* head = panel + block * (R * format.head_values + per_block * record_bytes);
  const unsigned char* subscales = head + R * format.head_values + within * record_bytes;
  uint8_t codes[64];
  row_codes(subscales + R * format.subscale_bytes, format.codes, r, codes);

  const bool bf16 = DType(packed.scale_dtype) == DType::bf16;
  const auto subscale = [&](int entry) { return subscales[entry * R + r]; };
  switch (format.scheme) {
    case ScaleScheme::pair:
      for (int i = 0; i < 2; ++i) {
        stored::scale_codes(codes + 32 * i, 32, half_entry(head, i, r, bf16), format.zero, values + 32 * i);
      }
      break;
    case ScaleScheme::pair_min:
      for (int i = 0; i < 2; ++i) {
        stored::scale_codes_min(codes + 32 * i, 32, half_entry(head, i, r, false), -half_entry(head, 2 + i, r, false),
                                values + 32 * i);
      }
      break;
    case ScaleScheme::group_zero: {
      const int count = packed.group == 32 ? 2 : 1;
      for (int i = 0; i < count; ++i) {
        const int zero = int(half_entry(head, count + i, r, bf16));
        stored::scale_codes(codes + 32 * i, 64 / count, half_entry(head, i, r, bf16), zero, values + 32 * i);
      }
      break;
    }
    case ScaleScheme::super_min: {
      const float d = half_entry(head, 0, r, false), dmin = half_entry(head, 1, r, false);
      for (int i = 0; i < 2; ++i) {
        stored::scale_codes_min(codes + 32 * i, 32, d * float(subscale(i)), dmin * float(subscale(2 + i)),
                                values + 32 * i);
      }
      break;
    }
    case ScaleScheme::super: {
      const float d = float_entry(head, 0, r);
      for (int i = 0; i < 4; ++i) {
        stored::scale_codes(codes + 16 * i, 16, d * float(int8_t(subscale(i))), format.zero, values + 16 * i);
      }
      break;
    }
    case ScaleScheme::row:
      stored::scale_codes(codes, 64, float_entry(head, 0, r), int(float_entry(head, 1, r)), values);
      break;
    case ScaleScheme::none: break;
  }
}

// A stretch of a row of float panels.
static void floats_to_f32(DType dtype, const unsigned char* panel, int r, int64_t begin, int64_t columns,
                          float* values) {
  for (int64_t k = begin; k < begin + columns; ++k, ++values) {
    switch (dtype) {
      case DType::f32: *values = stored::load_scale(panel + 4 * (k * R + r), dtype); break;
      case DType::f16: *values = stored::load_scale(panel + 2 * (k * R + r), dtype); break;
      case DType::bf16: *values = stored::load_scale(panel + 2 * ((k / 2 * R + r) * 2 + k % 2), dtype); break;
      default:  // sfp8
        *values = float_entry(panel, 0, r) * stored::sfp8_to_f32(panel[4 * R + (k / 4 * R + r) * 4 + k % 4]);
    }
  }
}

// The panel that holds a row, counted from the first.
LAPIDARY_INLINE int64_t panel_of_row(const TensorView& packed, int64_t row) {
  if (!(packed.flags & kPanelGateUp)) return row / R;
  const int64_t gate_rows = packed.dims[0] / 2;
  return row < gate_rows ? 2 * (row / R) : 2 * ((row - gate_rows) / R) + 1;
}

// Columns [begin, begin + columns) of row `row` as f32. begin is a multiple of 64; `values` has room for columns
// rounded up to 64.
static void row_to_f32(const TensorView& packed, int64_t row, int64_t begin, int64_t columns, float* values) {
  const unsigned char* panel = packed.data + panel_of_row(packed, row) * panel_bytes(packed);
  const PanelFormat format = panel_format(packed);
  const int r = int(row % R);  // halves of a gate and up stack are whole panels
  if (format.codes == CodeWidth::none) return floats_to_f32(packed.dtype, panel, r, begin, columns, values);
  for (int64_t k = 0; k < columns; k += kRecordColumns) {
    record_to_f32(packed, format, panel, (begin + k) / kRecordColumns, r, values + k);
  }
}

}  // namespace panel_rows
}  // namespace
}  // namespace lapidary
