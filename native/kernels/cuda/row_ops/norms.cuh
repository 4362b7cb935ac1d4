// norms.cuh: rms_norm, add_rms_norm, layer_norm. Formulas and contract: ops/row_ops.h.
//
// A row belongs to a team: a warp up to 1024 columns, a block of 256 threads beyond. It is read once and kept in registers up to
// kChunks · 8 elements per thread (8192 columns of a block); of longer rows the rest is read again, from L2. Sums are folded in pairs in
// a fixed order, so that results have the same bits whatever the schedule.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/rows.cuh"
#include "ops/row_ops.h"

namespace lapidary::cuda {

// Config of the kernels: threads per row, and chunks of eight elements that each keeps.
template <int kTeamValue, int kChunksValue>
struct RowTeam {
  static constexpr int kTeam = kTeamValue;
  static constexpr int kChunks = kChunksValue;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 3;
  static constexpr int kRowsPerBlock = kThreads / kTeam;
  static constexpr int64_t kStep = int64_t(kTeam) * kChunk;  // columns that the team covers with a chunk per thread
  static constexpr int64_t kKept = kStep * kChunks;          // columns of a row that is kept whole
};
using ShortRows = RowTeam<32, 4>;
using LongRows = RowTeam<256, 4>;

// Shared memory: a float per warp for each sum of a row, so that two sums in succession need one barrier each.
static constexpr int kNormSums = 2;
static constexpr size_t kNormSharedBytes = kNormSums * 8 * sizeof(float);

// The sum over the threads of a team, in each of them. `index`: which of the row's sums.
template <class Team>
LAPIDARY_DEVICE float team_sum(float sum, unsigned char* shared, int index) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  if constexpr (Team::kTeam > dev::kWarp) {
    constexpr int kWarps = Team::kTeam / dev::kWarp;
    float* parts = reinterpret_cast<float*>(shared) + index * kWarps;
    if (dev::lane() == 0) dev::store_shared(parts + dev::warp_index(), sum);
    dev::block_barrier();
    sum = dev::load_shared(parts + dev::lane() % kWarps);
#pragma unroll
    for (int mask = kWarps / 2; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  }
  return sum;
}

// This thread's part of a row of n columns.
template <class Team>
struct RowPart {
  const unsigned char* x;
  DType dtype;
  bool aligned;
  int64_t n;
  int64_t first;  // its first column; the others are kStep apart
  float kept[Team::kChunks][kChunk];

  LAPIDARY_DEVICE RowPart(const Rows& rows, int64_t row, int64_t columns)
      : x(row_at(rows, row)),
        dtype(rows.dtype),
        aligned(rows.aligned),
        n(columns),
        first(int64_t(dev::thread_index() % Team::kTeam) * kChunk) {
#pragma unroll
    for (int c = 0; c < Team::kChunks; ++c) {
      if (first + c * Team::kStep < n) read_chunk(x, dtype, aligned, first + c * Team::kStep, n, kept[c]);
    }
  }

  // body(v, column, is_kept) for each chunk. Kept ones may be changed, for the next time; others are read again each time.
  template <class Body>
  LAPIDARY_DEVICE void for_each(Body body) {
#pragma unroll
    for (int c = 0; c < Team::kChunks; ++c) {
      if (first + c * Team::kStep < n) body(kept[c], first + c * Team::kStep, true);
    }
    for (int64_t column = first + Team::kKept; column < n; column += Team::kStep) {
      float v[kChunk];
      read_chunk(x, dtype, aligned, column, n, v);
      body(v, column, false);
    }
  }
};

template <class Team>
LAPIDARY_DEVICE int64_t row_index() {
  return int64_t(dev::block_index_x()) * Team::kRowsPerBlock + dev::thread_index() / Team::kTeam;
}

LAPIDARY_DEVICE float fold(const float (&v)[kChunk]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}
LAPIDARY_DEVICE float fold_squares(const float (&v)[kChunk]) {
  float squares[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) squares[i] = v[i] * v[i];
  return fold(squares);
}

LAPIDARY_DEVICE float inverse_root(float sum, int64_t n, float eps) {
  return dev::div(1.0f, dev::sqrt(dev::div(sum, float(n)) + eps));
}

LAPIDARY_DEVICE void read_weights(const float* weights, int64_t column, int64_t n, float (&w)[kChunk]) {
  const bool aligned = reinterpret_cast<uintptr_t>(weights) % 16 == 0;
  read_chunk(reinterpret_cast<const unsigned char*>(weights), DType::f32, aligned, column, n, w);
}

// v · r · (bias + weight); an absent weight is not multiplied at all.
LAPIDARY_DEVICE void scale_chunk(float (&v)[kChunk], float r, const float* weight, float bias, int64_t column,
                                 int64_t n) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] *= r;
  if (!weight) return;
  float w[kChunk];
  read_weights(weight, column, n, w);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] *= bias + w[i];
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
  static constexpr int kMinBlocks = Team::kMinBlocks;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int64_t row = row_index<Team>();
    if (row >= p.rows) return;  // a whole warp of ShortRows, which meets nobody
    RowPart<Team> part(p.x, row, p.n);
    float sum = 0;
    part.for_each([&](float(&v)[kChunk], int64_t, bool) { sum += fold_squares(v); });
    const float r = inverse_root(team_sum<Team>(sum, shared, 0), p.n, p.eps);
    unsigned char* out = writable_row_at(p.out, row);
    part.for_each([&](float(&v)[kChunk], int64_t column, bool) {
      scale_chunk(v, r, p.weight, p.weight_bias, column, p.n);
      write_chunk(out, p.out.dtype, p.out.aligned, column, p.n, v);
    });
  }
};

struct AddRmsNormArguments {
  Rows x, residual, out, normed;
  const float* post_weight;  // null: absent
  const float* pre_weight;
  int64_t rows, n;
  float eps, weight_bias, out_scale;
  bool post_norm, next_norm;
};

// Gemma's sandwich of norms in one pass: the norm after a block, the residual add, and the norm before the next block.
template <class Team>
struct AddRmsNorm {
  using Params = AddRmsNormArguments;
  static constexpr int kThreads = Team::kThreads;
  static constexpr int kMinBlocks = 2;  // two rows at a time: 80 registers would spill

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int64_t row = row_index<Team>();
    if (row >= p.rows) return;
    RowPart<Team> part(p.x, row, p.n);
    float r = 1;
    if (p.post_norm) {
      float sum = 0;
      part.for_each([&](float(&v)[kChunk], int64_t, bool) { sum += fold_squares(v); });
      r = inverse_root(team_sum<Team>(sum, shared, 0), p.n, p.eps);
    }
    const unsigned char* residual = row_at(p.residual, row);
    // x becomes what is stored as residualOut.
    const auto add = [&](float(&v)[kChunk], int64_t column) {
      float kept[kChunk];
      read_chunk(residual, p.residual.dtype, p.residual.aligned, column, p.n, kept);
      scale_chunk(v, r, p.post_weight, p.weight_bias, column, p.n);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] = rounded((kept[i] + v[i]) * p.out_scale, p.out.dtype);
    };
    unsigned char* out = writable_row_at(p.out, row);
    float sum = 0;
    part.for_each([&](float(&v)[kChunk], int64_t column, bool) {
      add(v, column);
      sum += fold_squares(v);  // columns behind the row's end are zeros
      write_chunk(out, p.out.dtype, p.out.aligned, column, p.n, v);
    });
    if (!p.next_norm) return;
    const float next = inverse_root(team_sum<Team>(sum, shared, 1), p.n, p.eps);
    unsigned char* normed = writable_row_at(p.normed, row);
    part.for_each([&](float(&v)[kChunk], int64_t column, bool is_kept) {
      if (!is_kept) add(v, column);
      scale_chunk(v, next, p.pre_weight, p.weight_bias, column, p.n);
      write_chunk(normed, p.normed.dtype, p.normed.aligned, column, p.n, v);
    });
  }
};

struct LayerNormArguments {
  Rows x, out;
  const float* weight;  // null: absent
  const float* bias;
  int64_t rows, n;
  float eps;
};

template <class Team>
struct LayerNorm {
  using Params = LayerNormArguments;
  static constexpr int kThreads = Team::kThreads;
  static constexpr int kMinBlocks = Team::kMinBlocks;

  // The variance in a second pass over the differences, which no cancellation harms.
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int64_t row = row_index<Team>();
    if (row >= p.rows) return;
    RowPart<Team> part(p.x, row, p.n);
    float sum = 0;
    part.for_each([&](float(&v)[kChunk], int64_t, bool) { sum += fold(v); });
    const float mean = dev::div(team_sum<Team>(sum, shared, 0), float(p.n));
    float squares = 0;
    part.for_each([&](float(&v)[kChunk], int64_t column, bool) {
      float differences[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) differences[i] = column + i < p.n ? v[i] - mean : 0.0f;
      squares += fold_squares(differences);
    });
    const float r = inverse_root(team_sum<Team>(squares, shared, 1), p.n, p.eps);
    unsigned char* out = writable_row_at(p.out, row);
    part.for_each([&](float(&v)[kChunk], int64_t column, bool) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] -= mean;
      scale_chunk(v, r, p.weight, 0.0f, column, p.n);
      if (p.bias) {
        float b[kChunk];
        read_weights(p.bias, column, p.n, b);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] += b[i];
      }
      write_chunk(out, p.out.dtype, p.out.aligned, column, p.n, v);
    });
  }
};

}  // namespace lapidary::cuda
