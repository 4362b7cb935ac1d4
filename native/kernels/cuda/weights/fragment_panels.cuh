// fragment_panels.cuh: where things lie in a packed matrix on CUDA: panels in fragment order (ops/weight_panels.h).
//
// A warp reads a record of 16 rows × 64 columns (floats: 32 columns) with one or two 16-byte loads per lane. Lane 4g + t serves rows
// g and g + 8 of the panel and, of every 32 columns, the columns 8t … 8t + 7: its share of the A operand of two mma.m16n8k16, whose
// k index 2t, 2t + 1, 2t + 8, 2t + 9 in step s is column 8t + 4s … 8t + 4s + 3. A sum over k may take its columns in any order as
// long as both operands take the same.
#pragma once
#include "kernels/cuda/device/device.h"
#include "ops/weight_panels.h"

namespace lapidary::cuda {

static constexpr int kPanelRows = 16;  // of every CUDA device's DeviceTraits

// ── the shape of a packed matrix ────────────────────────────────────────────────────────────────────────────────────

// Plain data for kernels, from the packed view.
struct Panels {
  const unsigned char* data;
  int64_t panel_bytes;
  int64_t columns;  // K
  int64_t rows;     // N
  int records;      // of one panel; the last one may hold padding
  int panels;
  int block_shift;   // records share a head in blocks of 2^block_shift; 31: all of them
  int block_bytes;   // head and records of a block
  int head_bytes;    // of 16 rows
  int record_bytes;  // sub-scales and codes of 16 rows
  int group;         // of i4
  DType dtype;
  ScaleScheme scheme;
  CodeWidth codes;
  bool bf16_scales;
  bool gate_up;

  // Of a record, from the beginning of its panel: its block's head, and its own bytes.
  LAPIDARY_HOST_DEVICE int64_t head_offset(int record) const { return int64_t(record >> block_shift) * block_bytes; }
  LAPIDARY_HOST_DEVICE int64_t record_offset(int record) const {
    const int within = record & int((1u << block_shift) - 1u);
    return head_offset(record) + head_bytes + int64_t(within) * record_bytes;
  }
  // The number of the panel that holds a row of the matrix; its place there is row % 16.
  LAPIDARY_HOST_DEVICE int64_t panel_of_row(int64_t row) const {
    if (!gate_up) return row / kPanelRows;
    const int64_t half = rows / 2;
    return row < half ? row / kPanelRows * 2 : (row - half) / kPanelRows * 2 + 1;
  }
};

static inline Panels describe_panels(const TensorView& w) {
  const PanelFormat format = panel_format(w);
  Panels p = {};
  p.data = w.data;
  p.panel_bytes = panel_bytes(w);
  p.rows = w.dims[0];
  p.columns = w.dims[1];
  p.panels = int(panel_count(w));
  p.group = w.group;
  p.dtype = w.dtype;
  p.scheme = format.scheme;
  p.codes = format.codes;
  p.bf16_scales = DType(w.scale_dtype) == DType::bf16;
  p.gate_up = (w.flags & kPanelGateUp) != 0;
  const int64_t columns = panel_columns(w);
  if (format.codes == CodeWidth::none) {
    p.records = int(columns / 32);
    p.block_shift = 31;
    p.head_bytes = w.dtype == DType::sfp8 ? 4 * kPanelRows : 0;
    p.record_bytes = 32 * kPanelRows * (w.dtype == DType::sfp8 ? 1 : info(w.dtype).block_bytes);
    return p;
  }
  p.records = int(columns / kRecordColumns);
  p.head_bytes = format.head_values * kPanelRows;
  p.record_bytes = (format.subscale_bytes + format.code_bytes) * kPanelRows;
  const int together = format.records_per_block;
  p.block_shift = together == 0 ? 31 : together == 1 ? 0 : together == 2 ? 1 : 2;
  p.block_bytes = together == 0 ? 0 : p.head_bytes + together * p.record_bytes;
  return p;
}

// ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// The lane that holds columns `column` (of 32) of row `row` of a panel.
LAPIDARY_HOST_DEVICE int lane_of(int row, int column) { return row % 8 * 4 + column / 8; }

// Which nibble of a lane's word holds column 0 … 7: pairs of neighbours lie 16 bits apart, as a word of two bf16 needs them, and the
// even and the odd nibbles are two words of bytes (kEvenBytes, kOddBytes).
LAPIDARY_HOST_DEVICE int nibble_of(int column) { return column / 2 + 4 * (column % 2); }
LAPIDARY_HOST_DEVICE int column_of_nibble(int nibble) { return 2 * (nibble % 4) + nibble / 4; }

// The columns of a lane's eight in the order of the bytes of its even and of its odd word: 0 4 1 5 and 2 6 3 7.
LAPIDARY_HOST_DEVICE int column_of_byte(int byte) { return column_of_nibble(byte % 4 * 2 + byte / 4); }
LAPIDARY_HOST_DEVICE int byte_of(int column) {
  const int nibble = nibble_of(column);
  return nibble % 2 * 4 + nibble / 2;
}

// Where entry `entry` of `entries` lies for a row, counted in entries: what one lane needs lies together.
LAPIDARY_HOST_DEVICE int entry_of(int entry, int entries, int row) { return (row % 8 * entries + entry) * 2 + row / 8; }

// Bit of a lane's plane word, and two-bit field of its two, for nibble `nibble` of word 2·group + half.
LAPIDARY_HOST_DEVICE int plane_bit(int group, int half, int nibble) {
  return nibble / 2 * 8 + 2 * (2 * group + half) + nibble % 2;
}
LAPIDARY_HOST_DEVICE int plane_pair(int half, int nibble) { return nibble / 2 * 8 + 4 * half + 2 * (nibble % 2); }

// Bytes of a lane's share of a float record, 16 at a time: element of row half `half`, column `column` of the lane's eight.
LAPIDARY_HOST_DEVICE int float_offset(int bytes, int lane, int half, int column) {
  const int at = (half * 8 + column) * bytes;  // in the lane's share
  return at / 16 * 512 + lane * 16 + at % 16;
}

}  // namespace lapidary::cuda
