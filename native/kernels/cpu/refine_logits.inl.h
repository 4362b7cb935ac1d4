// refine_logits: the largest logits of a row, computed again from a more exact head. Contract: ops/refine_logits.h.
//
// Algorithm: rows are taken in waves of as many as there are threads.
//
//     all threads    every block's largest logit          ─► block_max   [rows of the wave, blocks]
//     one per row    the top candidates, as top-k sampling finds them (sampling.inl.h)
//     all threads    one dot product per candidate, and its logit replaced
//
// A candidate's row is widened 256 columns at a time into f32 that stay in L1. Rows lie anywhere in the table: each
// costs a few memory latencies, about 0.4 µs for 1152 columns of q8_0 from cold memory, one thread of Zen 5.
//
// Scratch: 12 bytes per token of the vocabulary and thread, touched as far as there are candidates.
#pragma once
#include "kernels/cpu/sampling/logit_rows.h"
#include "kernels/cpu/weights/row_stretch.h"
#include "ops/refine_logits.h"

namespace lapidary {
namespace {

struct RefineScratch {
  float* block_max;  // [threads, blocks]
  int64_t* counts;   // [threads]
  unsigned char* candidates;
  size_t candidate_bytes;

  LAPIDARY_MEMBER_INLINE Candidates of(int row) const {
    unsigned char* base = candidates + size_t(row) * 3 * candidate_bytes;
    return {reinterpret_cast<float*>(base), reinterpret_cast<float*>(base + candidate_bytes),
            reinterpret_cast<int32_t*>(base + 2 * candidate_bytes), 0};
  }
};

size_t refine_padded(size_t bytes) { return (bytes + 127) & ~size_t(127); }
size_t refine_candidate_bytes(const Call& call) { return refine_padded(size_t(call.in[0].dims[1] + kLanes) * 4); }

size_t refine_scratch_bytes(const Call& call, int threads) {
  return refine_padded(size_t(block_count(call.in[0].dims[1])) * sizeof(float) * size_t(threads)) +
         refine_padded(size_t(threads) * sizeof(int64_t)) + 3 * refine_candidate_bytes(call) * size_t(threads);
}

RefineScratch refine_scratch(const Call& call, const Team& team) {
  unsigned char* p = team.scratch;
  RefineScratch scratch;
  scratch.block_max = reinterpret_cast<float*>(p);
  p += refine_padded(size_t(block_count(call.in[0].dims[1])) * sizeof(float) * size_t(team.threads));
  scratch.counts = reinterpret_cast<int64_t*>(p);
  p += refine_padded(size_t(team.threads) * sizeof(int64_t));
  scratch.candidates = p;
  scratch.candidate_bytes = refine_candidate_bytes(call);
  return scratch;
}

LogitRow<DType::f32> refined_row(const TensorView& logits, int64_t row) {
  return {logits.data + row * logits.strides[0] * 4, nullptr, logits.dims[1]};
}

// The `top` largest of a row.
int64_t find_top(const LogitRow<DType::f32>& row, const float* block_max, int64_t blocks, int64_t top,
                 Candidates candidates) {
  const float max = row_maximum(block_max, blocks);
  float bound = -kInfinity;
  if (top <= blocks) bound = find_cutoff({block_max, nullptr, blocks}, bound, max, double(top)).x;
  gather(row, block_max, blocks, bound, candidates);
  if (candidates.count > top) {
    keep_best(candidates, find_cutoff({candidates.x, nullptr, candidates.count}, bound, max, double(top)));
  }
  return candidates.count;
}

// Σ_k hidden[k] · table[id, k]
float exact_logit(const TensorView& table, int64_t id, const TensorView& hidden, int64_t row) {
  alignas(64) float values[kStretch];
  const unsigned char* x = hidden.data + row * hidden.strides[0] * info(hidden.dtype).block_bytes;
  F32 sum = simd::zero();
  for (int64_t k = 0; k < table.dims[1]; k += kStretch) {
    const int64_t columns = table.dims[1] - k < kStretch ? table.dims[1] - k : kStretch;
    read_stretch(table, id, k, columns, values);
    for (int64_t i = 0; i < columns; i += kLanes) {
      const int n = lanes_at(i, columns);
      const F32 activation = hidden.dtype == DType::f32
                                 ? simd::load_first(reinterpret_cast<const float*>(x) + k + i, n)
                                 : simd::load_bf16_first(reinterpret_cast<const uint16_t*>(x) + k + i, n);
      sum = simd::fma(activation, simd::load_first(values + i, n), sum);
    }
  }
  return simd::reduce_add(sum);
}

void refine_logits(const Call& call, Team& team) {
  const TensorView &logits = call.in[RefineLogitsInput::logits], &hidden = call.in[RefineLogitsInput::hidden];
  const TensorView& table = call.in[RefineLogitsInput::table];
  const int64_t top = call.params_as<RefineLogitsParams>().top;
  const int64_t rows = logits.dims[0], blocks = block_count(logits.dims[1]);
  const RefineScratch scratch = refine_scratch(call, team);
  for (int64_t first = 0; first < rows; first += team.threads) {
    const int64_t wave = rows - first < team.threads ? rows - first : team.threads;
    if (first > 0) team_barrier(team);
    const Range maxima = team_range(team, wave * blocks);
    for (int64_t i = maxima.begin; i < maxima.end; ++i) {
      scratch.block_max[i] = block_maximum(refined_row(logits, first + i / blocks), i % blocks);
    }
    team_barrier(team);
    if (team.thread < wave) {
      scratch.counts[team.thread] =
          find_top(refined_row(logits, first + team.thread), scratch.block_max + team.thread * blocks, blocks, top,
                   scratch.of(team.thread));
    }
    team_barrier(team);
    for (int row = 0; row < int(wave); ++row) {
      float* out = reinterpret_cast<float*>(logits.data + (first + row) * logits.strides[0] * 4);
      const int32_t* ids = scratch.of(row).id;
      const Range range = team_range(team, scratch.counts[row]);
      for (int64_t i = range.begin; i < range.end; ++i) out[ids[i]] = exact_logit(table, ids[i], hidden, first + row);
    }
  }
}

const Kernel kKernels[] = {{OpId::refine_logits, refine_logits, refine_scratch_bytes}};

}  // namespace
}  // namespace lapidary
