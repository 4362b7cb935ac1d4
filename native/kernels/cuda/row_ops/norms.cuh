// norms.cuh: rms_norm, add_rms_norm, layer_norm. Formulas and contract: ops/row_ops.h.
//
// A row belongs to a team: a warp up to 1024 columns, a block of 256 threads beyond. It is read once and kept in registers up to
// kChunks · 8 elements per thread; longer rows are read again for the second pass, from L2. Sums are folded in pairs in a fixed order,
// so results have the same bits whatever the schedule.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/rows.cuh"
#include "ops/row_ops.h"

namespace lapidary::cuda {

// Config of the three kernels: threads per row and chunks of eight elements that each keeps.
template <int kTeamValue, int kChunksValue>
struct RowTeam {
  static constexpr int kTeam = kTeamValue;
  static constexpr int kChunks = kChunksValue;
  static constexpr int kThreads = 256;
  static constexpr int kRowsPerBlock = kThreads / kTeam;
  static constexpr int64_t kColumns = int64_t(kTeam) * kChunks * kChunk;  // of a row that is kept whole
};
using ShortRows = RowTeam<32, 4>;
using LongRows = RowTeam<256, 4>;

LAPIDARY_DEVICE float fold(const float (&v)[kChunk]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// The sum over the threads of a team, in each of them. `shared`: a float per warp of the block; two sums in a row take turns with two.
template <class Team>
LAPIDARY_DEVICE float team_sum(float sum, float* shared) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  if constexpr (Team::kTeam > dev::kWarp) {
    constexpr int kWarps = Team::kTeam / dev::kWarp;
    if (dev::lane() == 0) dev::store_shared(shared + dev::warp_index(), sum);
    dev::block_barrier();
    sum = dev::load_shared(shared + dev::lane() % kWarps);
#pragma unroll
    for (int mask = kWarps / 2; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  }
  return sum;
}

static constexpr size_t kNormSharedBytes = 2 * 8 * sizeof(float);

// Where this thread works: its row, and its first column of every stretch of Team::kTeam chunks.
template <class Team>
struct RowPlace {
  int64_t row;
  int64_t column;
  static constexpr int64_t kStep = int64_t(Team::kTeam) * kChunk;
  LAPIDARY_DEVICE RowPlace()
      : row(int64_t(dev::block_index_x()) * Team::kRowsPerBlock + dev::thread_index() / Team::kTeam),
        column(int64_t(dev::thread_index() % Team::kTeam) * kChunk) {}
};

LAPIDARY_DEVICE float inverse_root(float mean_square, float eps) {
  return dev::div(1.0f, dev::sqrt(mean_square + eps));
}

// v · r · (bias + weight); an absent weight is not multiplied at all.
LAPIDARY_DEVICE void scale_chunk(float (&v)[kChunk], float r, const float* weight, float bias, int64_t column,
                                 int64_t n) {
  if (!weight) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] *= r;
    return;
  }
  float w[kChunk];
  read_chunk(reinterpret_cast<const unsigned char*>(weight), DType::f32, reinterpret_cast<uintptr_t>(weight) % 16 == 0,
             column, n, w);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = v[i] * r * (bias + w[i]);
}

struct RmsNormArguments {
  Rows x, out;
  const float* weight;  // null: absent
  int64_t rows, n;
  float eps, weight_bias;
};

template <class Team>
struct RmsNorm {
  using Params = RmsNormArguments;
  static constexpr int kThreads = Team::kThreads;
  static constexpr int kMinBlocks = 3;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const RowPlace<Team> place;
    if (Team::kRowsPerBlock > 1 && place.row >= p.rows) return;  // a whole warp, which meets nobody
    const unsigned char* x = row_at(p.x, place.row);
    float kept[Team::kChunks][kChunk];
    float sum = 0;
#pragma unroll
    for (int c = 0; c < Team::kChunks; ++c) {
      const int64_t column = place.column + c * place.kStep;
      if (column >= p.n) break;
      read_chunk(x, p.x.dtype, p.x.aligned, column, p.n, kept[c]);
    }
    const auto add = [&](const float(&v)[kChunk]) {
      float squares[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) squares[i] = v[i] * v[i];
      sum += fold(squares);
    };
#pragma unroll
    for (int c = 0; c < Team::kChunks; ++c) {
      if (place.column + c * place.kStep < p.n) add(kept[c]);
    }
    for (int64_t column = place.column + Team::kColumns; column < p.n; column += place.kStep) {
      float v[kChunk];
      read_chunk(x, p.x.dtype, p.x.aligned, column, p.n, v);
      add(v);
    }
    sum = team_sum<Team>(sum, reinterpret_cast<float*>(shared));
    const float r = inverse_root(dev::div(sum, float(p.n)), p.eps);

    unsigned char* out = writable_row_at(p.out, place.row);
#pragma unroll
    for (int c = 0; c < Team::kChunks; ++c) {
      const int64_t column = place.column + c * place.kStep;
      if (column >= p.n) break;
      scale_chunk(kept[c], r, p.weight, p.weight_bias, column, p.n);
      write_chunk(out, p.out.dtype, p.out.aligned, column, p.n, kept[c]);
    }
    for (int64_t column = place.column + Team::kColumns; column < p.n; column += place.kStep) {
      float v[kChunk];
      read_chunk(x, p.x.dtype, p.x.aligned, column, p.n, v);
      scale_chunk(v, r, p.weight, p.weight_bias, column, p.n);
      write_chunk(out, p.out.dtype, p.out.aligned, column, p.n, v);
    }
  }
};

}  // namespace lapidary::cuda
