// partials.h: results of single chunks of keys, and their merge into the output in the order of the chunks.
//
// A partial row is a cache line and head_dim floats, padded to whole lines:
//   [reference m, sum l, 1 where the row sees a page that does not exist (else 0), 13 unused | O, not divided by l]
#pragma once
#include "kernels/cpu/flash_attention/online_softmax.h"
#include "kernels/cpu/flash_attention/work_items.h"

namespace lapidary {
namespace {
namespace attention {

LAPIDARY_INLINE int64_t partial_stride(int head_dim) { return 16 + (head_dim + 15) / 16 * 16; }

LAPIDARY_INLINE void store_out(unsigned char* row, DType dtype, int element, F32 values, int count) {
  if (dtype == DType::f32) {
    float* to = reinterpret_cast<float*>(row) + element;
    count == kLanes ? simd::store(to, values) : simd::store_first(to, values, count);
  } else {
    uint16_t* to = reinterpret_cast<uint16_t*>(row) + element;
    count == kLanes ? simd::store_bf16(to, values) : simd::store_bf16_first(to, values, count);
  }
}

LAPIDARY_INLINE void zero_out(unsigned char* row, DType dtype, int head_dim) {
  memset(row, 0, size_t(head_dim) * (dtype == DType::f32 ? 4 : 2));
}

// One row of the output from its chunks' partial rows, `step` floats apart.
template <class Products>
static void merge_row(const float* partials, int64_t step, int chunks, int head_dim, unsigned char* out, DType dtype) {
  for (int c = 0; c < chunks; ++c) {
    if (partials[c * step + 2] != 0.f) return zero_out(out, dtype, head_dim);
  }
  float reference = kNoReference;
  for (int c = 0; c < chunks; ++c) reference = partials[c * step] > reference ? partials[c * step] : reference;
  const auto factor = [&](int c) { return Products::exponential(simd::set1(partials[c * step] - reference)); };
  F32 sum = simd::zero();
  for (int c = 0; c < chunks; ++c) sum = simd::fma(factor(c), simd::set1(partials[c * step + 1]), sum);
  const F32 seen = simd::select(simd::less(simd::zero(), sum), simd::set1(1.f), sum);  // 0, or NaN, stays
  const F32 inverse = simd::div(seen, simd::select(simd::less(simd::zero(), sum), sum, simd::set1(1.f)));
  static constexpr int kAtOnce = 4;  // vectors of the row, so that a factor serves several
  for (int d = 0; d < head_dim; d += kAtOnce * kLanes) {
    F32 row[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) row[i] = simd::zero();
    for (int c = 0; c < chunks; ++c) {
      const F32 f = factor(c);
      for (int i = 0; i < kAtOnce && d + i * kLanes < head_dim; ++i) {
        row[i] = simd::fma(f, simd::load(partials + c * step + 16 + d + i * kLanes), row[i]);
      }
    }
    for (int i = 0; i < kAtOnce && d + i * kLanes < head_dim; ++i) {
      const int rest = head_dim - d - i * kLanes;
      store_out(out, dtype, d + i * kLanes, simd::mul(row[i], inverse), rest < kLanes ? rest : kLanes);
    }
  }
}

// All blocks whose keys were cut. Call after every piece is done.
template <class Products>
static void merge_partials(const Problem& p, Team& team, const float* partials, int counter, int block_rows,
                           int granule) {
  PieceWalk walk(p, team, block_rows, granule);
  const int64_t stride = partial_stride(p.head_dim);
  int64_t claimed = team_claim(team, counter, 1), job = 0;
  Piece piece;
  for (int64_t index = 0; walk.find(index, piece);) {
    if (piece.chunks == 1) {
      ++index;
      continue;
    }
    // The first piece of a block stands for all its heads and chunks, which follow it.
    for (int head = 0; head < p.kv_heads; ++head, ++job) {
      if (job != claimed) continue;
      const int64_t first = partial_row(piece, head);
      for (int row = 0; row < piece.rows; ++row) {
        merge_row<Products>(partials + (first + row) * stride, piece.rows * stride, piece.chunks, p.head_dim,
                            out_row(p, piece.sequence, head, piece.row_begin + row), p.out_dtype);
      }
      claimed = team_claim(team, counter, 1);
    }
    index += walk.pieces_of_block();
  }
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
