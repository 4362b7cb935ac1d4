// weight_panels.h: the streaming layout of a weight matrix, `Layout::panels`: the one description that pack_weights
// writes and matmul reads.
//
//   W [N, K]  →  ceil(N / R) panels of R = TensorView::panel_rows rows, each one contiguous run of bytes read front to
//   back. Rows past N and columns past K are stored as weights of value 0, so that kernels need no tails inside a
//   panel. R is 16 (AVX-512, AMX), 8 (AVX2) or 4 (NEON, scalar): one 32-bit SIMD lane per row.
//
// Integer formats. Columns are cut into records of 64. A record's codes are unsigned bytes once expanded: 16 vectors of
// 4R bytes, vector v holding for each row its codes of columns 4v … 4v+3 (the operand of vpdpbusd, usdot and the B tile
// of AMX).
//
//   nibble line  4R bytes hold vectors 2l (low nibbles) and 2l+1 (high nibbles); a record has 8 lines
//   bit plane    5-bit codes: 16 × R/2 bytes after the lines; bit i of vector v's R/2 bytes is bit 4 of its byte i
//   pair planes  6-bit codes: 4 × 4R bytes after the lines; vector v takes bits 2(v mod 4) and the next of plane v/4 as
//                its bits 4 and 5
//   bytes        8-bit codes: 16 × 4R bytes, code = signed value + 128
//   table        4-bit numbers of entries of kTable4, in nibble lines: once expanded 8-bit codes, entry = value + 128
//
//   A block is `records_per_block` records with a head before them; some formats have sub-scales before each record:
//
//   scheme      formats                    head                                     sub-scales        value
//   pair        q4_0 q5_0 q8_0 iq4_nl,     per record: s[2] 16-bit                  –                 s·(code − zero)
//               symmetric i4/32
//   pair_min    q4_1 q5_1                  per record: s[2], m[2] f16               –                 s·code + m
//   group_zero  i4 groups of 32            per record: s[2], z[2] 16-bit            –                 s·(code − z)
//               i4 groups of 64, 128       per group: s, z 16-bit                   –                 s·(code − z)
//   super_min   q4_k q5_k                  per 256 columns: d, dmin f16             sc[2], mn[2] u8   d·sc·code − dmin·mn
//   super       q3_k q6_k iq4_xs           per 256 columns: d f32                   sc[4] i8          d·sc·(code − zero)
//   row         i4, i8 per channel         per panel: s, z f32                      –                 s·(code − z)
//
//   Order: an entry is one value for each of the R rows, entries follow each other as listed, so s[2], m[2] lies as
//   s₀[R] s₁[R] m₀[R] m₁[R]; index i of a 32-column scale is the i-th half of its record, of a 16-column scale the i-th
//   quarter. Within a panel: block 0 = head, then for each of its records sub-scales, lines, planes; block 1; …
//
//   Fragment order. CUDA has the same blocks, records, schemes and bytes with R = 16, in the order of a warp's lanes. Lane 4g + t serves
//   rows g and g + 8 and, of every 32 columns, the columns 8t … 8t + 7, so that 16 bytes per lane are its operands of
//   mma.m16n8k16 (kernels/cuda/weights/fragment_panels.cuh):
//
//   nibbles   16 bytes per lane, four words: row g, row g + 8 of the first 32 columns, then of the second. Column c of a lane's
//             eight is nibble c/2 + 4·(c mod 2)
//   u5        after them a word per lane: bit 4 of nibble n of word w is its bit 8·(n/2) + 2w + n mod 2
//   u6        two words per lane, for the first and the second 32 columns: bits 4 and 5 of nibble n of row g + 8h are bits
//             8·(n/2) + 4h + 2·(n mod 2) and the next
//   table     as nibbles
//   bytes     signed values, zero 0: 512 bytes for each 32 columns, of which a lane has 16: row g, then row g + 8; columns
//             0 4 1 5 2 6 3 7
//   entries   of heads and sub-scales: row r's entry e of E is number 2·((r mod 8)·E + e) + r/8
//   floats    32 columns at a time. A lane's share, row g's eight and then row g + 8's in order of columns, is cut into
//             pieces of 16 bytes; the pieces of all lanes lie together. sfp8's head is as above
//
//   Padding: columns past K hold the code that means zero (4, 8, 16, 32, 128; the group's or row's z; 0 for pair_min;
//   number 0 of the table, which has no zero: its columns end with a group) and, where a whole group is padding, s = m
//   = 0 and z = 8. A z of 16, which a gptq row can have, is no code: its padding
//   holds 15. So activations past K are zeros, whatever the weights. Rows past N hold s = m = d = 0, sub-scales 0, z
//   the format's middle (8 or 128; in fragment order 8 or 0), codes = z, or number 0 of the table.
//
//   kPanelGateUp: the matrix is still [gate; up] by its row numbers (gate is rows 0 … N/2−1); the panels of row n are
//   number 2·(n / R) for gate and 2·((n − N/2) / R) + 1 for up.
//
//   16-bit scales are f16, or bf16 where TensorView::scale_dtype says so; z is stored in the same type (integers to 16
//   are exact in both). Every head is a whole number of 4R bytes: with R = 16 all code lines are cache lines. For R =
//   16 q4_0 streams 9 lines per 64 × 16 weights, exactly the 4.5 bits per weight of the file.
//
// Float formats. K is padded to 32.
//   f32   [K][R] f32        f16  [K][R] f16        bf16  [K/2][R][2]: the operand of vdpbf16ps and the B tile of AMX
//   sfp8  head s[R] f32, then [K/4][R][4] bytes: value = s · sfp8(byte)
#pragma once
#include "core/tensor_view.h"

namespace lapidary {

enum PanelFlags : uint8_t {
  kPanelGateUp = 1,     // panels alternate: R rows of gate, R rows of up (matmul's geglu epilogue needs it)
  kPanelSymmetric = 2,  // i4 groups of 32 only: zero point 8 everywhere, scheme pair
};

static constexpr int kRecordColumns = 64;

enum class CodeWidth : uint8_t { none, u4, u5, u6, u8, table4 };
enum class ScaleScheme : uint8_t { none, pair, pair_min, group_zero, super_min, super, row };

// What IQ4_NL's and IQ4_XS's 4-bit numbers mean, plus 128 (ggml-common.h, kvalues_iq4nl: a quantiser that is finer
// about zero, where weights are many).
static constexpr uint8_t kTable4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

struct PanelFormat {
  CodeWidth codes;
  ScaleScheme scheme;
  int zero;               // pair, super: the constant zero point; row: the middle
  int records_per_block;  // 0: the whole panel is one block
  int head_values;        // bytes of head per row and block
  int subscale_bytes;     // bytes of sub-scales per row and record
  int code_bytes;         // bytes of codes per row and record
};

// The panel format of a packed view, from its dtype, group and flags.
LAPIDARY_INLINE PanelFormat panel_format(const TensorView& w) {
  switch (w.dtype) {
    case DType::q4_0: return {CodeWidth::u4, ScaleScheme::pair, 8, 1, 4, 0, 32};
    case DType::q4_1: return {CodeWidth::u4, ScaleScheme::pair_min, 0, 1, 8, 0, 32};
    case DType::q5_0: return {CodeWidth::u5, ScaleScheme::pair, 16, 1, 4, 0, 40};
    case DType::q5_1: return {CodeWidth::u5, ScaleScheme::pair_min, 0, 1, 8, 0, 40};
    case DType::q8_0: return {CodeWidth::u8, ScaleScheme::pair, 128, 1, 4, 0, 64};
    case DType::iq4_nl: return {CodeWidth::table4, ScaleScheme::pair, 128, 1, 4, 0, 32};
    case DType::q3_k: return {CodeWidth::u4, ScaleScheme::super, 4, 4, 4, 4, 32};
    case DType::q4_k: return {CodeWidth::u4, ScaleScheme::super_min, 0, 4, 4, 4, 32};
    case DType::q5_k: return {CodeWidth::u5, ScaleScheme::super_min, 0, 4, 4, 4, 40};
    case DType::q6_k: return {CodeWidth::u6, ScaleScheme::super, 32, 4, 4, 4, 48};
    case DType::iq4_xs: return {CodeWidth::table4, ScaleScheme::super, 128, 4, 4, 4, 32};
    case DType::i8: return {CodeWidth::u8, ScaleScheme::row, 128, 0, 8, 0, 64};
    case DType::i4:
      if (w.group == 0) return {CodeWidth::u4, ScaleScheme::row, 8, 0, 8, 0, 32};
      if (w.group == 32 && (w.flags & kPanelSymmetric)) return {CodeWidth::u4, ScaleScheme::pair, 8, 1, 4, 0, 32};
      if (w.group == 32) return {CodeWidth::u4, ScaleScheme::group_zero, 0, 1, 8, 0, 32};
      return {CodeWidth::u4, ScaleScheme::group_zero, 0, w.group / kRecordColumns, 4, 0, 32};
    default: return {CodeWidth::none, ScaleScheme::none, 0, 0, 0, 0, 0};
  }
}

// Columns as stored: K rounded up to whole blocks.
LAPIDARY_INLINE int64_t panel_columns(const TensorView& w) {
  const PanelFormat format = panel_format(w);
  const int64_t granule =
      format.codes == CodeWidth::none ? 32 : kRecordColumns * (format.records_per_block ? format.records_per_block : 1);
  return (w.dims[1] + granule - 1) / granule * granule;
}

// Bytes of one panel: the distance from one panel to the next.
LAPIDARY_INLINE int64_t panel_bytes(const TensorView& w) {
  const int64_t columns = panel_columns(w);
  const int64_t rows = w.panel_rows;
  switch (w.dtype) {
    case DType::f32: return rows * columns * 4;
    case DType::f16:
    case DType::bf16: return rows * columns * 2;
    case DType::sfp8: return rows * (4 + columns);
    default: break;
  }
  const PanelFormat format = panel_format(w);
  const int64_t records = columns / kRecordColumns;
  const int64_t blocks = format.records_per_block ? records / format.records_per_block : 1;
  return rows * (blocks * format.head_values + records * (format.subscale_bytes + format.code_bytes));
}

// Gate and up each fill whole panels, so that a gate panel always has its up panel behind it.
LAPIDARY_INLINE int64_t panel_count(const TensorView& w) {
  if (w.flags & kPanelGateUp) return 2 * ((w.dims[0] / 2 + w.panel_rows - 1) / w.panel_rows);
  return (w.dims[0] + w.panel_rows - 1) / w.panel_rows;
}

}  // namespace lapidary
