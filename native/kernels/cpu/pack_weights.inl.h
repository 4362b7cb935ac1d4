// pack_weights: W [N, K] as a checkpoint stores it  →  panels (ops/weight_panels.h).   stack_weights: panels of several
// matrices in one.
//
// Algorithm: every thread owns a contiguous range of panels, so that the pages it touches first are the ones matmul's
// same thread reads. A record of a panel is R rows × 64 columns: expand each row's codes to bytes
// (kernels/cpu/weights/stored_formats.h, integer_groups.h), transpose 32-bit words (panel_writer.h), write nibble lines
// and planes; scales are copied as they are.
//
//   row r:  [s q…q][s q…q] …   ×R     →     [s₀ … s_{R−1} | line 0 | line 1 | … | line 7] …
//
// Contract: ops/pack_weights.h. Sources may lie at any address; the result is written once, front to back, padding
// included. Bytes: one read of W, one write of the panels. FLOPs: none.
#include "kernels/cpu/column_order.h"
#include "kernels/cpu/weights/integer_groups.h"
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/weights/panel_writer.h"
#include "kernels/cpu/weights/stored_formats.h"
#include "ops/pack_weights.h"

namespace lapidary {
namespace {

using panel::R;
using panel::Words;

// GPTQ and AWQ lay columns one under another: a cache line of words spans 16 or 128 rows. Panels of 128 rows are
// packed together, record by record, so that a line is used up while it is in L1 (64 columns × 64 bytes).
static constexpr int kRowsTogether = 128;

LAPIDARY_INLINE int present_rows(const TensorView& packed, int64_t panel) {
  const int64_t rows = packed.dims[0] - panel * R;
  return rows < R ? int(rows) : R;
}

template <class T>
LAPIDARY_INLINE unsigned char* store_entry(unsigned char* out, const T (&values)[R]) {
  memcpy(out, values, sizeof values);
  return out + sizeof values;
}

// A record of codes by rows, as a panel stores it.
template <CodeWidth kWidth>
LAPIDARY_INLINE unsigned char* store_record(unsigned char* out, const uint8_t (*codes)[64], int present, int zero) {
  Words vectors[panel::kVectors];
  panel::transpose_rows(codes[0], 64, vectors);
  panel::fill_absent_rows(vectors, present, uint32_t(zero) * 0x01010101u);
  return panel::store_codes<kWidth>(out, vectors);
}

// ── blocks of 32: schemes pair and pair_min ─────────────────────────────────────────────────────────────────────────

template <DType kFormat, CodeWidth kWidth>
static void pack_blocks32(const Call& call, int64_t panel, unsigned char* out) {
  using Block = stored::Block32<kFormat>;
  const TensorView& weight = call.in[0];
  const int present = present_rows(call.out[0], panel);
  const int64_t stride = row_bytes(weight);
  const unsigned char* rows = weight.data + panel * R * stride;
  const int64_t blocks = weight.dims[1] / 32;
  constexpr int kPadding = Block::kTable ? 0 : Block::kZero;
  for (int64_t block = 0; block < blocks; block += 2, rows += 2 * Block::kBytes) {
    const int halves = blocks - block < 2 ? 1 : 2;
    alignas(64) uint8_t codes[R][64];
    uint16_t head[Block::kMin ? 4 : 2][R] = {};
    for (int r = 0; r < present; ++r) {
      for (int h = 0; h < halves; ++h) {
        const unsigned char* from = rows + r * stride + h * Block::kBytes;
        head[h][r] = stored::load_u16(from);
        if constexpr (Block::kMin) head[2 + h][r] = stored::load_u16(from + 2);
        Block::codes(from, codes[r] + 32 * h);
      }
      if (halves == 1) memset(codes[r] + 32, kPadding, 32);
    }
    memcpy(out, head, sizeof head);
    out = store_record<kWidth>(out + sizeof head, codes, present, kPadding);
  }
}

// ── blocks of 256: schemes super_min and super ──────────────────────────────────────────────────────────────────────

template <DType kFormat, CodeWidth kWidth>
static void pack_blocks256(const Call& call, int64_t panel, unsigned char* out) {
  using Block = stored::Block256<kFormat>;
  const TensorView& weight = call.in[0];
  const int present = present_rows(call.out[0], panel);
  const int64_t stride = row_bytes(weight);
  const unsigned char* rows = weight.data + panel * R * stride;
  const int64_t blocks = weight.dims[1] / 256;
  for (int64_t block = 0; block < blocks; ++block, rows += Block::kBytes) {
    uint8_t scales[4][4][R] = {};  // record, entry, row: sc[4], or sc[2] and mn[2]
    if constexpr (Block::kSuper) {
      float head[R] = {};
      for (int r = 0; r < present; ++r) {
        const unsigned char* from = rows + r * stride;
        head[r] = stored::load_f16_scale(from + Block::kScale);
        int8_t sc[16];
        Block::scales(from, sc);
        for (int i = 0; i < 16; ++i) scales[i / 4][i % 4][r] = uint8_t(sc[i]);
      }
      out = store_entry(out, head);
    } else {
      uint16_t head[2][R] = {};
      for (int r = 0; r < present; ++r) {
        const unsigned char* from = rows + r * stride;
        head[0][r] = stored::load_u16(from);
        head[1][r] = stored::load_u16(from + 2);
        uint8_t sc[8], mn[8];
        stored::unpack_k_scales(from + 4, sc, mn);
        for (int i = 0; i < 8; ++i) {
          scales[i / 2][i % 2][r] = sc[i];
          scales[i / 2][2 + i % 2][r] = mn[i];
        }
      }
      memcpy(out, head, sizeof head);
      out += sizeof head;
    }
    for (int record = 0; record < 4; ++record) {
      alignas(64) uint8_t codes[R][64];
      for (int r = 0; r < present; ++r) Block::codes(rows + r * stride, record, codes[r]);
      memcpy(out, scales[record], sizeof scales[record]);
      out = store_record<kWidth>(out + sizeof scales[record], codes, present, Block::kTable ? 0 : Block::kZero);
    }
  }
}

// ── 4-bit integers: schemes pair, group_zero and row ────────────────────────────────────────────────────────────────

// The head of a block that starts at group `g`: `count` scales, then, unless symmetric, as many zero points.
LAPIDARY_INLINE unsigned char* store_group_head(unsigned char* out, const groups::Source& source, int64_t row,
                                                int present, int64_t g, int count, bool symmetric) {
  uint16_t scales[2][R] = {}, zeros[2][R];
  for (int i = 0; i < count; ++i) {
    int32_t zero[R];
    const bool padding = (g + i) * source.group >= source.columns;
    for (int r = 0; r < R; ++r) {
      const bool real = r < present && !padding;
      if (real) scales[i][r] = stored::load_u16(source.scale(row + r, g + i));
      zero[r] = real ? source.zero(row + r, g + i) : 8;
    }
    const simd::F32 values = simd::to_f32(simd::load_i32(zero));
    if (source.scales.dtype == DType::bf16)
      simd::store_bf16(zeros[i], values);
    else
      simd::store_f16(zeros[i], values);
  }
  for (int i = 0; i < count; ++i) out = store_entry(out, scales[i]);
  for (int i = 0; i < count && !symmetric; ++i) out = store_entry(out, zeros[i]);
  return out;
}

// One record of a panel of 4-bit integers, at its place in the panel.
static void pack_group_record(const groups::Source& source, const TensorView& packed, int64_t panel, int64_t record) {
  const PanelFormat format = panel_format(packed);
  const int64_t row = panel * R;
  const int present = present_rows(packed, panel);
  unsigned char* out = packed.data + panel * panel_bytes(packed);
  Words vectors[panel::kVectors];
  groups::code_vectors(source, row, present, 64 * record, vectors);
  if (format.scheme == ScaleScheme::row) {
    float head[2][R];
    Words padding = {};
    for (int r = 0; r < R; ++r) {
      const int zero = r < present ? source.zero(row + r, 0) : 8;
      head[0][r] = r < present ? stored::load_scale(source.scale(row + r, 0), source.scales.dtype) : 0;
      head[1][r] = float(zero);
      padding[r] = uint32_t(zero > 15 ? 15 : zero) * 0x01010101u;  // gptq's z = 16 is no code
    }
    if (record == 0) memcpy(out, head, sizeof head);
    for (int64_t v = (source.columns - 64 * record + 3) / 4; v < panel::kVectors; ++v) vectors[v] = padding;
    out += sizeof head + record * R * format.code_bytes;
  } else {
    const int64_t block = record / format.records_per_block, within = record % format.records_per_block;
    out += block * R * (format.head_values + format.records_per_block * format.code_bytes);
    const int count = source.group == 32 ? 2 : 1;
    if (within == 0)
      store_group_head(out, source, row, present, block * count, count, format.scheme == ScaleScheme::pair);
    out += R * (format.head_values + within * format.code_bytes);
  }
  panel::fill_absent_rows(vectors, present, 0x08080808u);
  panel::store_codes<CodeWidth::u4>(out, vectors);
}

static void pack_groups(const Call& call, Team& team) {
  const TensorView& packed = call.out[0];
  const groups::Source source(call, team);
  if (source.order) {  // what is none has code 8: ordered_vectors()
    are_columns(source.order, source.columns, source.columns, team,
                "pack_weights: columnOrder: expected a column below %lld, got %lld");
  }
  const int64_t records = panel_columns(packed) / kRecordColumns;
  const Range range = team_range(team, panel_count(packed), kRowsTogether / R);
  for (int64_t first = range.begin; first < range.end; first += kRowsTogether / R) {
    const int64_t last = first + kRowsTogether / R < range.end ? first + kRowsTogether / R : range.end;
    for (int64_t record = 0; record < records; ++record) {
      for (int64_t panel = first; panel < last; ++panel) pack_group_record(source, packed, panel, record);
    }
  }
}

// ── 8-bit integers per channel: scheme row ──────────────────────────────────────────────────────────────────────────

static void pack_i8_channel(const Call& call, int64_t panel, unsigned char* out) {
  const TensorView& weight = call.in[0];
  const TensorView& scales = call.in[1];
  const int present = present_rows(call.out[0], panel);
  const int64_t columns = weight.dims[1];
  float head[2][R] = {};
  for (int r = 0; r < R; ++r) {
    const unsigned char* scale = scales.data + (panel * R + r) * scales.strides[0] * info(scales.dtype).block_bytes;
    if (r < present) head[0][r] = stored::load_scale(scale, scales.dtype);
    head[1][r] = 128;
  }
  memcpy(out, head, sizeof head);
  out += sizeof head;
  for (int64_t column = 0; column < columns; column += 64) {
    alignas(64) uint8_t codes[R][64];
    const int64_t count = columns - column < 64 ? columns - column : 64;
    for (int r = 0; r < present; ++r) {
      const unsigned char* from = weight.data + (panel * R + r) * weight.strides[0] + column;
      if (count == 64) {
        stored::bias_bytes<64>(from, codes[r]);
      } else {
        memset(codes[r], 128, 64);
        for (int64_t k = 0; k < count; ++k) codes[r][k] = from[k] ^ 128;
      }
    }
    out = store_record<CodeWidth::u8>(out, codes, present, 128);
  }
}

// ── floats ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// A word of every row: its columns as panels order them.
template <DType kFormat>
LAPIDARY_INLINE void store_columns(unsigned char* out, Words vector) {
  if constexpr (kFormat == DType::f16) {  // a column of f16 is contiguous: part the pairs
    panel::store(out, __builtin_convertvector(vector & 0xffffu, panel::Halves));
    panel::store(out + 2 * R, __builtin_convertvector(vector >> 16, panel::Halves));
  } else {
    panel::store(out, vector);
  }
}

// A word is 1 column of f32, 2 of f16 or bf16, 4 of sfp8; 16 words of every row at a time.
template <DType kFormat>
static void pack_floats(const Call& call, int64_t panel, unsigned char* out) {
  constexpr int kWord = 4, kChunk = panel::kVectors * kWord,
                kElement = kFormat == DType::f32    ? 4
                           : kFormat == DType::sfp8 ? 1
                                                    : 2;
  const TensorView& weight = call.in[0];
  const TensorView& packed = call.out[0];
  const int present = present_rows(packed, panel);
  const int64_t stride = weight.strides[0] * kElement, bytes = weight.dims[1] * kElement;
  const int64_t padded = panel_columns(packed) * kElement;
  const unsigned char* rows = weight.data + panel * R * stride;
  if constexpr (kFormat == DType::sfp8) {
    float head[R];
    for (int r = 0; r < R; ++r) head[r] = r < present ? call.params_as<PackWeightsParams>().scale : 0;
    out = store_entry(out, head);
  }
  for (int64_t offset = 0; offset < padded; offset += kChunk) {
    Words vectors[panel::kVectors];
    if (present == R && offset + kChunk <= bytes) {
      panel::transpose_rows(rows + offset, stride, vectors);
    } else {
      alignas(64) unsigned char staged[R][kChunk] = {};
      const int64_t count = bytes - offset < kChunk ? bytes - offset : kChunk;
      for (int r = 0; r < present && count > 0; ++r) memcpy(staged[r], rows + r * stride + offset, size_t(count));
      panel::transpose_rows(staged[0], kChunk, vectors);
    }
    // Two loops: with a variable count compilers turn the stores into a call of memcpy, at 2.5 times the cost.
    if (padded - offset >= kChunk) {
      for (int v = 0; v < panel::kVectors; ++v) store_columns<kFormat>(out + v * kWord * R, vectors[v]);
    } else {
      for (int v = 0; v < int((padded - offset) / kWord); ++v) store_columns<kFormat>(out + v * kWord * R, vectors[v]);
    }
    out += kChunk * R;
  }
}

// ── kernels ─────────────────────────────────────────────────────────────────────────────────────────────────────────

using PackPanel = void (*)(const Call& call, int64_t panel, unsigned char* out);

static PackPanel stored_packer(DType dtype) {
  switch (dtype) {
    case DType::f32: return pack_floats<DType::f32>;
    case DType::f16: return pack_floats<DType::f16>;
    case DType::bf16: return pack_floats<DType::bf16>;
    case DType::sfp8: return pack_floats<DType::sfp8>;
    case DType::q4_0: return pack_blocks32<DType::q4_0, CodeWidth::u4>;
    case DType::q4_1: return pack_blocks32<DType::q4_1, CodeWidth::u4>;
    case DType::q5_0: return pack_blocks32<DType::q5_0, CodeWidth::u5>;
    case DType::q5_1: return pack_blocks32<DType::q5_1, CodeWidth::u5>;
    case DType::q8_0: return pack_blocks32<DType::q8_0, CodeWidth::u8>;
    case DType::iq4_nl: return pack_blocks32<DType::iq4_nl, CodeWidth::table4>;
    case DType::q3_k: return pack_blocks256<DType::q3_k, CodeWidth::u4>;
    case DType::q4_k: return pack_blocks256<DType::q4_k, CodeWidth::u4>;
    case DType::q5_k: return pack_blocks256<DType::q5_k, CodeWidth::u5>;
    case DType::q6_k: return pack_blocks256<DType::q6_k, CodeWidth::u6>;
    case DType::iq4_xs: return pack_blocks256<DType::iq4_xs, CodeWidth::table4>;
    default: return nullptr;
  }
}

static void pack_weights(const Call& call, Team& team) {
  const TensorView& packed = call.out[0];
  const WeightFormat format = call.params_as<PackWeightsParams>().format;
  if (format != WeightFormat::stored && format != WeightFormat::i8_channel) return pack_groups(call, team);
  const PackPanel pack = format == WeightFormat::stored ? stored_packer(packed.dtype) : pack_i8_channel;
  const int64_t bytes = panel_bytes(packed);
  const Range range = team_range(team, panel_count(packed));
  for (int64_t panel = range.begin; panel < range.end; ++panel) pack(call, panel, packed.data + panel * bytes);
}

static void stack_weights(const Call& call, Team& team) {
  const TensorView& stacked = call.out[0];
  const bool gate_up = call.params_as<StackWeightsParams>().gate_up;
  const int64_t bytes = panel_bytes(stacked);
  const Range range = team_range(team, panel_count(stacked));
  for (int64_t panel = range.begin; panel < range.end; ++panel) {
    int source = gate_up ? int(panel % 2) : 0;
    int64_t from = gate_up ? panel / 2 : panel;
    for (; !gate_up && from >= panel_count(call.in[source]); ++source) from -= panel_count(call.in[source]);
    memcpy(stacked.data + panel * bytes, call.in[source].data + from * bytes, size_t(bytes));
  }
}

static const Kernel kKernels[] = {
    {OpId::pack_weights, pack_weights, nullptr},
    {OpId::stack_weights, stack_weights, nullptr},
};

}  // namespace
}  // namespace lapidary
