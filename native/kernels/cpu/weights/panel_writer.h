// panel_writer.h: the code lines and bit planes of one record of a panel (ops/weight_panels.h), from a record of
// every row.
//
//   rows                                  vectors                              record
//   row 0:  word 0 │ word 1 │ … │ 15      v 0:  row 0 │ row 1 │ … │ row R−1    u4: line l = v 2l │ v 2l+1 « 4
//   row 1:  word 0 │ …              →     v 1:  row 0 │ …                  →   u5: … and bit 4 of every byte
//     ⋮                                     ⋮                                  u6: … and bits 4, 5 of every byte
//   row R−1                               v 15                                 u8: v 0 … v 15
//
// A word is 4 consecutive codes of a row, so both arrows move 32-bit lanes only: an R × R transpose takes R·log2(R)
// two-input shuffles. Written with the compilers' vector types: the SIMD vocabulary has no shuffles, and these are
// all that packing needs.
#pragma once
#include "ops/weight_panels.h"

namespace lapidary {
namespace {
namespace panel {

static constexpr int R = simd::kLanes;  // TensorView::panel_rows of this ISA
static constexpr int kVectors = 16;     // of a record; also the words of a row that one transpose takes

typedef uint32_t Words __attribute__((vector_size(4 * R)));  // one 32-bit word of every row
typedef uint16_t Halves __attribute__((vector_size(2 * R)));

LAPIDARY_INLINE Words load_words(const void* p) {
  Words words;
  memcpy(&words, p, sizeof words);
  return words;
}
template <class Vector>
LAPIDARY_INLINE void store(unsigned char* p, Vector vector) {
  memcpy(p, &vector, sizeof vector);
}

// 0 … n−1 as template arguments.
template <int... kLane>
struct LaneList {};
template <int kCount, int... kLane>
struct MakeLanes : MakeLanes<kCount - 1, kCount - 1, kLane...> {};
template <int... kLane>
struct MakeLanes<0, kLane...> {
  using List = LaneList<kLane...>;
};
using Lanes = MakeLanes<R>::List;

// Exchanges the off-diagonal kHalf × kHalf blocks of two rows: one butterfly of the transpose.
template <int kHalf, int... kLane>
LAPIDARY_INLINE void exchange(Words& a, Words& b, LaneList<kLane...>) {
  const Words low = __builtin_shufflevector(a, b, ((kLane & kHalf) ? R + kLane - kHalf : kLane)...);
  const Words high = __builtin_shufflevector(a, b, ((kLane & kHalf) ? R + kLane : kLane + kHalf)...);
  a = low;
  b = high;
}

template <int kHalf>
LAPIDARY_INLINE void transpose(Words* rows) {
  if constexpr (kHalf > 0) {
    for (int i = 0; i < R; ++i) {
      if (!(i & kHalf)) exchange<kHalf>(rows[i], rows[i + kHalf], Lanes());
    }
    transpose<kHalf / 2>(rows);
  }
}

// 16 words of every row, `stride` bytes apart, to 16 vectors.
LAPIDARY_INLINE void transpose_rows(const unsigned char* rows, int64_t stride, Words* vectors) {
  for (int part = 0; part < kVectors / R; ++part) {
    Words block[R];
    for (int r = 0; r < R; ++r) block[r] = load_words(rows + r * stride + part * sizeof(Words));
    transpose<R / 2>(block);
    for (int r = 0; r < R; ++r) vectors[part * R + r] = block[r];
  }
}

// The same where rows lie at unrelated addresses.
LAPIDARY_INLINE void transpose_rows(const unsigned char* const* rows, int64_t offset, Words* vectors) {
  for (int part = 0; part < kVectors / R; ++part) {
    Words block[R];
    for (int r = 0; r < R; ++r) block[r] = load_words(rows[r] + offset + part * sizeof(Words));
    transpose<R / 2>(block);
    for (int r = 0; r < R; ++r) vectors[part * R + r] = block[r];
  }
}

// Replaces all words of rows `present` and up.
LAPIDARY_INLINE void fill_absent_rows(Words* vectors, int present, uint32_t word) {
  if (present == R) return;
  Words absent;
  for (int r = 0; r < R; ++r) absent[r] = r < present ? 0 : ~0u;
  for (int v = 0; v < kVectors; ++v) vectors[v] = (vectors[v] & ~absent) | (word & absent);
}

// Bit 4 of each of a vector's 4R bytes, as R/2 bytes in the order of the bytes.
LAPIDARY_INLINE void store_bit_plane(unsigned char* plane, Words vector) {
  // The multiplication moves bits 0, 8, 16, 24 of a word to bits 24 … 27; no two of its partial products share a bit.
  const Words nibbles = (((vector >> 4) & 0x01010101u) * 0x01020408u) >> 24;
  for (int r = 0; r < R; r += 2) plane[r / 2] = uint8_t((nibbles[r] & 15) | (nibbles[r + 1] & 15) << 4);
}

// Writes a record's codes; returns the byte after them.
template <CodeWidth kWidth>
LAPIDARY_INLINE unsigned char* store_codes(unsigned char* out, const Words* vectors) {
  constexpr int kLine = sizeof(Words);
  if constexpr (kWidth == CodeWidth::u8) {
    for (int v = 0; v < kVectors; ++v) store(out + v * kLine, vectors[v]);
    return out + kVectors * kLine;
  }
  for (int line = 0; line < kVectors / 2; ++line) {
    const Words low = vectors[2 * line] & 0x0f0f0f0fu, high = vectors[2 * line + 1] & 0x0f0f0f0fu;
    store(out + line * kLine, low | high << 4);
  }
  out += kVectors / 2 * kLine;
  if constexpr (kWidth == CodeWidth::u5) {
    for (int v = 0; v < kVectors; ++v) store_bit_plane(out + v * (R / 2), vectors[v]);
    out += kVectors * (R / 2);
  }
  if constexpr (kWidth == CodeWidth::u6) {
    for (int p = 0; p < 4; ++p) {
      Words plane = {};
      for (int i = 0; i < 4; ++i) plane |= ((vectors[4 * p + i] >> 4) & 0x03030303u) << (2 * i);
      store(out + p * kLine, plane);
    }
    out += 4 * kLine;
  }
  return out;
}

}  // namespace panel
}  // namespace
}  // namespace lapidary
