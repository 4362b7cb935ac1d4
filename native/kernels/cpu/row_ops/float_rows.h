// float_rows.h: rows of f32, bf16 or f16, for kernels that are written once, in f32. Include after simd/<isa>.h.
//
// A row is visited in stretches of kStretch columns. A stretch of f32 is used where it lies; one of 16-bit floats is
// widened into a buffer in L1, or computed there and then rounded into the row: about two cycles per vector widened and
// three per vector rounded (Zen 5, avx512). A loop per combination of dtypes would save half of that and take 140 KB of
// code per ISA instead of 30; a branch on the dtype per vector is slower than the buffer.
#pragma once
#include "kernels/cpu/kernel.h"

namespace lapidary {
namespace {

using simd::F32;
using simd::kLanes;

// Columns; a multiple of 4 · kLanes on every ISA. A buffer takes 4 KiB, so that four of them leave most of L1 to the
// row.
static constexpr int64_t kStretch = 1024;

LAPIDARY_INLINE F32 load_part(const float* p, int count) {
  return count == kLanes ? simd::load(p) : simd::load_first(p, count);
}
LAPIDARY_INLINE void store_part(float* p, F32 x, int count) {
  count == kLanes ? simd::store(p, x) : simd::store_first(p, x, count);
}

// body(i, count) for the vectors of n columns: count is kLanes, known to the compiler, in all but the last.
template <class Body>
LAPIDARY_INLINE void for_vectors(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, int(n - i));
}

// body(begin, count) for the stretches of the columns from `begin` to `end`.
template <class Body>
LAPIDARY_INLINE void for_stretches(int64_t begin, int64_t end, Body body) {
  for (; begin < end; begin += kStretch) body(begin, end - begin < kStretch ? end - begin : kStretch);
}

static void widen(const uint16_t* from, DType dtype, int64_t count, float* to) {
  if (dtype == DType::bf16) {
    for_vectors(count, [=](int64_t i, int n) {
      store_part(to + i, n == kLanes ? simd::load_bf16(from + i) : simd::load_bf16_first(from + i, n), n);
    });
  } else {
    for_vectors(count, [=](int64_t i, int n) {
      store_part(to + i, n == kLanes ? simd::load_f16(from + i) : simd::load_f16_first(from + i, n), n);
    });
  }
}
static void narrow(const float* from, int64_t count, DType dtype, uint16_t* to) {
  if (dtype == DType::bf16) {
    for_vectors(count, [=](int64_t i, int n) {
      const F32 x = load_part(from + i, n);
      n == kLanes ? simd::store_bf16(to + i, x) : simd::store_bf16_first(to + i, x, n);
    });
  } else {
    for_vectors(count, [=](int64_t i, int n) {
      const F32 x = load_part(from + i, n);
      n == kLanes ? simd::store_f16(to + i, x) : simd::store_f16_first(to + i, x, n);
    });
  }
}

struct Stretch {
  alignas(64) float columns[kStretch];
};

// Columns begin … begin + count − 1 of a row, as f32: in place, or widened into `buffer`.
LAPIDARY_INLINE const float* read_stretch(const unsigned char* row, DType dtype, int64_t begin, int64_t count,
                                          Stretch& buffer) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(row) + begin;
  widen(reinterpret_cast<const uint16_t*>(row) + begin, dtype, count, buffer.columns);
  return buffer.columns;
}
// Where to compute columns begin … of a row: in place, or in `buffer`, from where write_stretch() rounds them into the
// row.
LAPIDARY_INLINE float* stretch_target(unsigned char* row, DType dtype, int64_t begin, Stretch& buffer) {
  return dtype == DType::f32 ? reinterpret_cast<float*>(row) + begin : buffer.columns;
}
LAPIDARY_INLINE void write_stretch(unsigned char* row, DType dtype, int64_t begin, int64_t count,
                                   const Stretch& buffer) {
  if (dtype != DType::f32) narrow(buffer.columns, count, dtype, reinterpret_cast<uint16_t*>(row) + begin);
}

// Where the rows of a tensor begin: its leading dimensions, which may be strided, counted as one.
struct Rows {
  unsigned char* data;
  int64_t dims[2];     // of the last two leading dimensions longer than 1
  int64_t strides[3];  // in bytes, of the last three
  bool uniform;        // strides[2] leads from any row to the next

  LAPIDARY_MEMBER_INLINE unsigned char* at(int64_t row) const {
    if (uniform) return data + row * strides[2];
    const int64_t rest = row / dims[1];
    return data + rest / dims[0] * strides[0] + rest % dims[0] * strides[1] + row % dims[1] * strides[2];
  }
};

static Rows rows_of(const TensorView& view) {
  Rows rows = {view.data, {1, 1}, {0, 0, 0}, true};
  int slot = 2;
  for (int i = view.rank - 2; i >= 0; --i) {
    if (view.dims[i] == 1) continue;
    rows.strides[slot] = view.strides[i] * info(view.dtype).block_bytes;
    if (slot < 2 && rows.strides[slot] != rows.dims[slot] * rows.strides[slot + 1]) rows.uniform = false;
    if (slot > 0) rows.dims[slot - 1] = view.dims[i];
    --slot;
  }
  return rows;
}

// Pieces of work for this thread. Fewer pieces than threads go to the first threads, one each: a single row costs less
// than waking a second core.
LAPIDARY_INLINE Range piece_range(const Team& team, int64_t pieces) {
  if (pieces >= team.threads) return team_range(team, pieces);
  const int64_t begin = team.thread < pieces ? team.thread : pieces;
  return {begin, team.thread < pieces ? begin + 1 : pieces};
}

}  // namespace
}  // namespace lapidary
