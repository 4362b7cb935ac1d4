// activations.h: rows of x cut into register tiles and rounded to int8, in the order in which the kernels broadcast
// them.
//
//   x [M, K] f32|bf16  →  tiles of up to kTileRows rows; a tile is a run of entries, one per group of 32 columns:
//
//   entry of a tile of H rows     codes [4][H][8] s8    scales [H] f32    first [H] 32-bit    second [H] 32-bit (some
//   schemes)
//
//   scale = max|x| / 127 over the group, code = round(x · (127 / max|x|)) to nearest even, −127 … 127. A group whose
//   maximum is below 2⁻¹²⁰ counts as zero. A row that holds an infinity or NaN gets a scale of NaN, so that all its
//   outputs are NaN. The integer sums that zero points and minima are multiplied by are made here, once, in the form
//   each scheme wants (Corrections).
//
// One pointer walks through an entry: with six separate rows the address arithmetic would compete with the dot
// products, and rows a power of two apart would share a cache set. A dot product takes four bytes of a row, a product of
// byte matrices eight of each of two rows: both find them side by side.
#pragma once
#include "ops/weight_panels.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

using namespace simd;

static constexpr int kGroup = 32;                     // columns that share a scale of x
static constexpr int kSteps = kGroup / 4;             // dot product steps in a group
static constexpr int kVectors = kGroup / kLanes;      // vectors of f32 in a group
static constexpr float kSmallestMaximum = 0x1p-120f;  // 127 / max stays finite

// What `first` and `second` hold, q being the codes of the group.
struct Corrections {
  enum Kind : uint8_t {
    kStart,      // first: −zero · Σq (s32)
    kSum,        // first: Σq (f32)
    kStartSum,   // first: −zero · Σq (s32), second: Σq (f32)
    kTwoStarts,  // −zero · Σq over columns 0 … 15 and over 16 … 31 (s32)
  } kind;
  int zero;
};

// Offset in an entry of the four codes of row h that step `step` takes.
LAPIDARY_INLINE constexpr int codes_at(int step, int h, int height) {
  return (step / 2 * height + h) * 8 + step % 2 * 4;
}

LAPIDARY_INLINE constexpr int words_per_row(Corrections::Kind kind) {
  return kSteps + (kind == Corrections::kStart || kind == Corrections::kSum ? 2 : 3);
}

// M rows as `tiles` tiles of height `height` or one less.
struct Tiling {
  int64_t rows, tiles;
  int64_t taller;  // tiles that have the full height; they come first
  int height;

  LAPIDARY_MEMBER_INLINE int64_t first_row(int64_t tile) const {
    return tile * height - (tile > taller ? tile - taller : 0);
  }
  LAPIDARY_MEMBER_INLINE int rows_of(int64_t tile) const { return tile < taller ? height : height - 1; }
};
// Tiles of nearly equal height: 16 rows in tiles of at most 6 are 6 + 5 + 5, not 6 + 6 + 4.
LAPIDARY_INLINE Tiling tile_rows(int64_t rows, int most) {
  const int64_t tiles = (rows + most - 1) / most;
  const int height = int((rows + tiles - 1) / tiles);
  return {rows, tiles, rows - tiles * (height - 1), height};
}

template <class T>
LAPIDARY_INLINE T load_as(const void* p) {
  T value;
  memcpy(&value, p, sizeof value);
  return value;
}
template <class T>
LAPIDARY_INLINE void store_as(void* p, T value) {
  memcpy(p, &value, sizeof value);
}

// kLanes elements of a row of f32 or bf16, 0 past `columns`.
LAPIDARY_INLINE F32 load_x(const TensorView& x, int64_t row_offset, int64_t column, int64_t columns) {
  const int64_t present = columns - column;
  if (x.dtype == DType::bf16) {
    const uint16_t* p = x.as<uint16_t>() + row_offset + column;
    return present >= kLanes ? load_bf16(p) : present > 0 ? load_bf16_first(p, int(present)) : zero();
  }
  const float* p = x.as<float>() + row_offset + column;
  return present >= kLanes ? load(p) : present > 0 ? load_first(p, int(present)) : zero();
}

// Offset, in elements, of row `row` of x seen as [M, K]: leading dimensions may have any strides.
LAPIDARY_INLINE int64_t row_offset(const TensorView& x, int64_t row) {
  int64_t offset = 0;
  for (int axis = x.rank - 2; axis >= 0; --axis) {
    offset += row % x.dims[axis] * x.strides[axis];
    row /= x.dims[axis];
  }
  return offset;
}

// Rounds 32 columns of one row into row `h` of an entry of `height` rows. poison becomes NaN where a value is infinite
// or NaN; the entry is then defined but meaningless.
LAPIDARY_INLINE void quantize_group(const TensorView& x, int64_t offset, int64_t column, int64_t columns,
                                    Corrections corrections, unsigned char* entry, int h, int height, F32& poison) {
  F32 values[kVectors];
  F32 largest = zero();
  for (int v = 0; v < kVectors; ++v) {
    values[v] = load_x(x, offset, column + v * kLanes, columns);
    largest = max(abs(values[v]), largest);
    poison = fma(values[v], zero(), poison);
  }
  const float maximum = reduce_max(largest);
  const bool nonzero = maximum > kSmallestMaximum;
  const float scale = nonzero ? maximum / 127.f : 0.f;
  const F32 inverse = set1(nonzero ? 127.f / maximum : 0.f);

  int8_t codes[kGroup];
  F32 sums[2] = {zero(), zero()};
  for (int v = 0; v < kVectors; ++v) {
    // The bounds matter where a value is infinite or NaN only: no conversion may see it.
    const F32 code = round(min(max(mul(values[v], inverse), set1(-127.f)), set1(127.f)));
    store_i8(codes + v * kLanes, to_i32(code));
    F32& sum = sums[v * 2 / kVectors];
    sum = add(sum, code);
  }
  for (int step = 0; step < kSteps; step += 2) memcpy(entry + codes_at(step, h, height), codes + step * 4, 8);
  unsigned char* words = entry + (kSteps * height + h) * 4;
  store_as<float>(words, scale);
  // Sums of at most 32 codes of at most 127: exact in f32, in any order.
  if (corrections.kind == Corrections::kTwoStarts) {
    store_as<int32_t>(words + height * 4, -corrections.zero * int32_t(reduce_add(sums[0])));
    store_as<int32_t>(words + height * 8, -corrections.zero * int32_t(reduce_add(sums[1])));
    return;
  }
  const float sum = reduce_add(add(sums[0], sums[1]));
  if (corrections.kind == Corrections::kSum) {
    store_as<float>(words + height * 4, sum);
  } else {
    store_as<int32_t>(words + height * 4, -corrections.zero * int32_t(sum));
  }
  if (corrections.kind == Corrections::kStartSum) store_as<float>(words + height * 8, sum);
}

// The same for a group by itself: its scale is NaN where a value is infinite or NaN.
LAPIDARY_INLINE void quantize_group(const TensorView& x, int64_t offset, int64_t column, int64_t columns,
                                    Corrections corrections, unsigned char* entry, int h, int height) {
  F32 poison = zero();
  quantize_group(x, offset, column, columns, corrections, entry, h, height, poison);
  if (reduce_add(poison) != 0.f) store_as<float>(entry + (kSteps * height + h) * 4, __builtin_nanf(""));
}

// The tiles of a whole x in memory.
struct Activations {
  Tiling tiling;
  int64_t groups;
  Corrections corrections;
  unsigned char* data;

  LAPIDARY_MEMBER_INLINE int64_t row_bytes() const { return groups * words_per_row(corrections.kind) * 4; }
  LAPIDARY_MEMBER_INLINE int64_t bytes() const { return tiling.rows * row_bytes(); }
  LAPIDARY_MEMBER_INLINE unsigned char* tile(int64_t index) const {
    return data + tiling.first_row(index) * row_bytes();
  }
  LAPIDARY_MEMBER_INLINE int64_t entry_bytes(int height) const { return height * words_per_row(corrections.kind) * 4; }
};

// This thread's share of rounding x. A piece is a run of groups of one tile, so that one tall tile still splits.
static void quantize(const TensorView& x, const Activations& to, int thread, int threads) {
  static constexpr int64_t kPieceGroups = 16;
  const int64_t columns = x.dims[x.rank - 1];
  const int64_t pieces_per_tile = (to.groups + kPieceGroups - 1) / kPieceGroups;
  const int64_t pieces = to.tiling.tiles * pieces_per_tile;
  for (int64_t piece = pieces * thread / threads; piece < pieces * (thread + 1) / threads; ++piece) {
    const int64_t tile = piece / pieces_per_tile;
    const int height = to.tiling.rows_of(tile);
    const int64_t begin = piece % pieces_per_tile * kPieceGroups;
    const int64_t end = begin + kPieceGroups < to.groups ? begin + kPieceGroups : to.groups;
    for (int h = 0; h < height; ++h) {
      const int64_t offset = row_offset(x, to.tiling.first_row(tile) + h);
      unsigned char* const entries = to.tile(tile) + begin * to.entry_bytes(height);
      unsigned char* entry = entries;
      F32 poison = zero();
      for (int64_t group = begin; group < end; ++group, entry += to.entry_bytes(height)) {
        quantize_group(x, offset, group * kGroup, columns, to.corrections, entry, h, height, poison);
      }
      // One NaN scale makes all outputs of the row NaN.
      if (reduce_add(poison) != 0.f) store_as<float>(entries + (kSteps * height + h) * 4, __builtin_nanf(""));
    }
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
