// refine_logits: the largest logits of a row, computed again from a more exact head. Contract: ops/refine_logits.h.
//
// Algorithm: rows are shared out as for sample (sampling/waves.h). In a wave:
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
#include "kernels/cpu/sampling/waves.h"
#include "kernels/cpu/weights/row_stretch.h"
#include "ops/refine_logits.h"

namespace lapidary {
namespace {

// Beside the tables of waves.h: how many candidates each row of the wave has.
struct RefineScratch : WaveScratch {
  int64_t* counts;
};

size_t refine_bytes(const Call& call, int threads) {
  return wave_bytes(call, threads) + padded(size_t(threads) * sizeof(int64_t));
}

RefineScratch refine_scratch_of(const Call& call, const Team& team) {
  return {wave_scratch_of(call, team), reinterpret_cast<int64_t*>(team.scratch + wave_bytes(call, team.threads))};
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

void refine_wave(const Call& call, Team& team, int64_t first, int64_t rows) {
  const TensorView &logits = call.in[RefineLogitsInput::logits], &hidden = call.in[RefineLogitsInput::hidden];
  const TensorView& table = call.in[RefineLogitsInput::table];
  const int64_t blocks = block_count(logits.dims[1]);
  const RefineScratch scratch = refine_scratch_of(call, team);
  fill_block_max<DType::f32>(call, team, first, rows, blocks, scratch.block_max);
  team_barrier(team);
  if (team.thread < rows) {
    const float* block_max = scratch.block_max + team.thread * blocks;
    Candidates candidates = scratch.candidates(team.thread);
    find_top(logit_row<DType::f32>(call, first + team.thread), block_max, blocks, row_maximum(block_max, blocks),
             call.params_as<RefineLogitsParams>().top, candidates);
    scratch.counts[team.thread] = candidates.count;
  }
  team_barrier(team);
  for (int64_t row = 0; row < rows; ++row) {
    float* out = reinterpret_cast<float*>(logits.data + (first + row) * logits.strides[0] * 4);
    const int32_t* ids = scratch.candidates(row).id;
    const Range range = team_range(team, scratch.counts[row]);
    for (int64_t i = range.begin; i < range.end; ++i) out[ids[i]] = exact_logit(table, ids[i], hidden, first + row);
  }
}

void refine_logits(const Call& call, Team& team) {
  for_waves<refine_bytes>(call, team,
                          [&](Team& members, int64_t first, int64_t rows) { refine_wave(call, members, first, rows); });
}

const Kernel kKernels[] = {{OpId::refine_logits, refine_logits, waves_scratch<refine_bytes>}};

}  // namespace
}  // namespace lapidary
