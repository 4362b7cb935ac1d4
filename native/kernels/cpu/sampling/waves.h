// sampling/waves.h: how rows are shared out. As many rows as there are threads, or a multiple, are shared out whole: no
// thread waits for another. The rest, fewer than threads, are one wave: first all threads work on all of its rows, block
// by block, then each on one row. Include after simd/<isa>.h.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/candidates.h"
#include "kernels/cpu/sampling/logit_rows.h"

namespace lapidary {
namespace {

size_t padded(size_t bytes) { return (bytes + 127) & ~size_t(127); }

size_t max_bytes(const Call& call, int threads) {
  return padded(size_t(block_count(call.in[0].dims[1]) * threads) * sizeof(float));
}
size_t sum_bytes(const Call& call, int threads) { return 2 * max_bytes(call, threads); }
// A gather writes up to kLanes entries past the last candidate it keeps.
size_t candidate_bytes(const Call& call) { return padded(size_t(call.in[0].dims[1] + kLanes) * 4); }

// Of ops that need the blocks' maxima only.
inline size_t maxima_bytes(const Call& call, int threads) { return max_bytes(call, threads); }
size_t wave_bytes(const Call& call, int threads) {
  return max_bytes(call, threads) + sum_bytes(call, threads) + 3 * candidate_bytes(call) * size_t(threads);
}

// Scratch of a kernel whose wave takes bytes_of(call, threads): enough for a wave of one in each thread, too.
template <size_t (*bytes_of)(const Call& call, int threads)>
size_t waves_scratch(const Call& call, int threads) {
  return bytes_of(call, 1) * size_t(threads);
}

// Calls wave(team, first row, rows) for all rows. In a wave of one, the team is the thread alone.
template <size_t (*bytes_of)(const Call& call, int threads), class Wave>
LAPIDARY_INLINE void for_waves(const Call& call, Team& team, const Wave& wave) {
  const int64_t rows = call.in[0].dims[0], whole = rows / team.threads * team.threads;
  if (whole > 0) {
    Team alone = team;
    alone.thread = 0;
    alone.threads = 1;
    alone.scratch = team.scratch + bytes_of(call, 1) * size_t(team.thread);
    const Range range = team_range(team, whole);
    for (int64_t row = range.begin; row < range.end; ++row) wave(alone, row, int64_t(1));
  }
  if (whole == rows) return;
  if (whole > 0) team_barrier(team);  // the scratch is the others' until then
  wave(team, whole, rows - whole);
}

// Tables of a wave: [rows of the wave, blocks], and candidates of each row.
struct WaveScratch {
  float* block_max;
  double* block_sum;
  unsigned char* candidate_memory;
  size_t candidate_bytes;

  LAPIDARY_MEMBER_INLINE Candidates candidates(int64_t row) const {
    unsigned char* base = candidate_memory + 3 * candidate_bytes * size_t(row);
    return {reinterpret_cast<float*>(base), reinterpret_cast<float*>(base + candidate_bytes),
            reinterpret_cast<int32_t*>(base + 2 * candidate_bytes), 0};
  }
};

WaveScratch wave_scratch_of(const Call& call, const Team& team) {
  unsigned char* sums = team.scratch + max_bytes(call, team.threads);
  return {reinterpret_cast<float*>(team.scratch), reinterpret_cast<double*>(sums), sums + sum_bytes(call, team.threads),
          candidate_bytes(call)};
}

// Calls work(row of the wave, block) for this thread's share of rows × blocks.
template <class Work>
LAPIDARY_INLINE void for_blocks(const Team& team, int64_t rows, int64_t blocks, const Work& work) {
  const Range range = team_range(team, rows * blocks);
  int64_t row = range.begin / blocks, block = range.begin % blocks;
  for (int64_t i = range.begin; i < range.end; ++i) {
    work(row, block);
    if (++block == blocks) {
      block = 0;
      ++row;
    }
  }
}

template <DType kDtype>
void fill_block_max(const Call& call, const Team& team, int64_t first_row, int64_t rows, int64_t blocks,
                    float* block_max) {
  for_blocks(team, rows, blocks, [&](int64_t row, int64_t block) {
    block_max[row * blocks + block] = block_maximum(logit_row<kDtype>(call, first_row + row), block);
  });
}

}  // namespace
}  // namespace lapidary
