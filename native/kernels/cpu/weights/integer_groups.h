// integer_groups.h: reading the checkpoints' 4-bit integer matrices (ops/pack_weights.h): codes, scales and zero
// points of a panel's rows.
//
// compressed_tensors and i4_channel keep a row's nibbles together and are transposed like block formats. GPTQ's words
// hold 8 columns of one row and lie next to those of the other rows: they are a panel's vectors already. AWQ's words
// hold one column of 8 rows.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/weights/panel_writer.h"
#include "kernels/cpu/weights/stored_formats.h"
#include "ops/pack_weights.h"

namespace lapidary {
namespace {
namespace groups {

using panel::kVectors;
using panel::R;
using panel::Words;

struct Source {
  const TensorView& weight;
  const TensorView& scales;
  const TensorView& zeros;
  WeightFormat format;
  const int32_t* order;  // of columns, or null
  int64_t rows, columns, group;
  Team& team;

  LAPIDARY_MEMBER_INLINE explicit Source(const Call& call, Team& team)
      : weight(call.in[0]),
        scales(call.in[1]),
        zeros(call.in[2]),
        format(call.params_as<PackWeightsParams>().format),
        order(call.in[3].present() ? call.in[3].as<int32_t>() : nullptr),
        rows(call.out[0].dims[0]),
        columns(call.out[0].dims[1]),
        group(call.params_as<PackWeightsParams>().group),
        team(team) {}

  // The code of one weight.
  LAPIDARY_MEMBER_INLINE int code(int64_t row, int64_t k) const {
    const auto word = [&](int64_t line, int64_t index) {
      return stored::load_u32(weight.data + (line * weight.strides[0] + index) * 4);
    };
    if (format == WeightFormat::compressed_tensors) return word(row, k / 8) >> (4 * (k % 8)) & 15;
    if (format == WeightFormat::awq) return word(k, row / 8) >> (4 * awq_position(row)) & 15;
    return word(k / 8, row) >> (4 * (k % 8)) & 15;
  }
  LAPIDARY_MEMBER_INLINE static int awq_position(int64_t row) { return int((row >> 1 & 3) | (row & 1) << 2); }

  // The scale of a row's group: its bytes, 2 or 4.
  LAPIDARY_MEMBER_INLINE const unsigned char* scale(int64_t row, int64_t g) const {
    const int64_t bytes = info(scales.dtype).block_bytes;
    if (format == WeightFormat::i4_channel || format == WeightFormat::i8_channel) {
      return scales.data + row * scales.strides[0] * bytes;
    }
    const bool by_rows = format == WeightFormat::compressed_tensors;
    return scales.data + ((by_rows ? row : g) * scales.strides[0] + (by_rows ? g : row)) * bytes;
  }

  LAPIDARY_MEMBER_INLINE int zero(int64_t row, int64_t g) const {
    if (!zeros.present()) return 8;
    if (zeros.dtype == DType::i8) {
      const int relative = reinterpret_cast<const int8_t*>(zeros.data)[row * zeros.strides[0] + g];
      if (relative >= -8 && relative <= 7) return 8 + relative;
      team_fail(team, Code::kDataCorrupt, "pack_weights: zeros: expected -8 ... 7, got %lld in row %lld", relative,
                row);
      return 8;
    }
    if (format == WeightFormat::compressed_tensors) return nibble(row / 8, g, int(row % 8));
    if (format == WeightFormat::awq) return nibble(g, row / 8, awq_position(row));
    return nibble(g, row / 8, int(row % 8)) + (format == WeightFormat::gptq ? 1 : 0);
  }

  LAPIDARY_MEMBER_INLINE int nibble(int64_t line, int64_t word, int position) const {
    return stored::load_u32(zeros.data + (line * zeros.strides[0] + word) * 4) >> (4 * position) & 15;
  }
};

// Codes of 64 columns from `column`, of `present` rows from `row`. Columns past K are 8; absent rows are anything.
LAPIDARY_INLINE void row_vectors(const Source& source, int64_t row, int present, int64_t column, Words* vectors) {
  const int64_t stride = source.weight.strides[0] * info(source.weight.dtype).block_bytes;
  const int64_t bytes = (source.columns - column) / 2;
  alignas(64) uint8_t codes[R][64];
  for (int r = 0; r < present; ++r) {
    const unsigned char* packed = source.weight.data + (row + r) * stride + column / 2;
    if (bytes >= 32) {
      stored::unpack_nibbles<32>(packed, codes[r]);
    } else {
      unsigned char tail[32];
      memset(tail, 0x88, sizeof tail);
      memcpy(tail, packed, size_t(bytes));
      stored::unpack_nibbles<32>(tail, codes[r]);
    }
  }
  panel::transpose_rows(codes[0], 64, vectors);
}

// The low four nibbles of every word as bytes.
LAPIDARY_INLINE Words spread_nibbles(Words words) {
  words &= 0xffffu;
  words = (words | words << 8) & 0x00ff00ffu;
  return (words | words << 4) & 0x0f0f0f0fu;
}

LAPIDARY_INLINE void gptq_vectors(const Source& source, int64_t row, int present, int64_t column, Words* vectors) {
  for (int i = 0; i < 8; ++i) {
    const int64_t line = column / 8 + i;
    Words words = {};
    if (line >= source.columns / 8) {
      words += 0x88888888u;
    } else {
      const unsigned char* from = source.weight.data + (line * source.weight.strides[0] + row) * 4;
      if (present == R)
        words = panel::load_words(from);
      else
        memcpy(&words, from, size_t(present) * 4);
    }
    vectors[2 * i] = spread_nibbles(words);
    vectors[2 * i + 1] = spread_nibbles(words >> 16);
  }
}

// A word holds column k of 8 rows; nibbles 0 … 3 are rows 0, 2, 4, 6 and 4 … 7 are rows 1, 3, 5, 7. Words are first
// sorted by k mod 4: then a row's 64 codes, four to a word as a transpose takes them, are shifts and masks of whole
// vectors.
LAPIDARY_INLINE void awq_vectors(const Source& source, int64_t row, int present, int64_t column, Words* vectors) {
  alignas(64) uint32_t words[(R + 7) / 8][4][kVectors];
  const int octets = (present + 7) / 8;
  for (int k = 0; k < 64; ++k) {
    const bool padding = column + k >= source.columns;
    const unsigned char* from = source.weight.data + ((column + k) * source.weight.strides[0] + row / 8) * 4;
    for (int octet = 0; octet < octets; ++octet) {
      words[octet][k % 4][k / 4] = padding ? 0x88888888u : stored::load_u32(from + 4 * octet);
    }
  }
  alignas(64) unsigned char codes[R][64];
  for (int r = 0; r < present; ++r) {
    const int position = int(row % 8) + r, lane = position % 8;
    const int shift = 4 * (lane >> 1 | (lane & 1) << 2);
    for (int part = 0; part < kVectors / R; ++part) {
      Words four = {};
      for (int i = 0; i < 4; ++i) {
        four |= (panel::load_words(words[position / 8][i] + part * R) >> shift & 15u) << (8 * i);
      }
      panel::store(codes[r] + part * sizeof four, four);
    }
  }
  panel::transpose_rows(codes[0], 64, vectors);
}

// The same one code at a time, columns in the order that the call gives: loading-time work of few checkpoints.
LAPIDARY_INLINE void ordered_vectors(const Source& source, int64_t row, int present, int64_t column, Words* vectors) {
  alignas(64) uint8_t codes[R][64];
  memset(codes, 8, sizeof codes);
  for (int k = 0; k < 64 && column + k < source.columns; ++k) {
    const int64_t from = source.order[column + k];
    if (from < 0 || from >= source.columns) continue;
    for (int r = 0; r < present; ++r) codes[r][k] = uint8_t(source.code(row + r, from));
  }
  panel::transpose_rows(codes[0], 64, vectors);
}

LAPIDARY_INLINE void code_vectors(const Source& source, int64_t row, int present, int64_t column, Words* vectors) {
  if (source.order) return ordered_vectors(source, row, present, column, vectors);
  switch (source.format) {
    case WeightFormat::gptq:
    case WeightFormat::gptq_v2: return gptq_vectors(source, row, present, column, vectors);
    case WeightFormat::awq: return awq_vectors(source, row, present, column, vectors);
    default: return row_vectors(source, row, present, column, vectors);
  }
}

}  // namespace groups
}  // namespace
}  // namespace lapidary
