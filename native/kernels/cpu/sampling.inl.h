// sampling: the largest logit, or a random token by temperature, top-k, top-p and min-p. Formula and contract:
// ops/sampling.h.
//
// Algorithm
//   Rows are taken in waves of as many as there are threads; a row's vocabulary is cut into blocks of 256, whatever the
//   number of threads, so that sums have one order.
//
//     all threads    every block's largest x                               ─► block_max  [rows of the wave, blocks]
//     all threads    every block's Σw, where a row of the wave needs it    ─► block_sum  [rows of the wave, blocks]
//     one per row    candidates ─► top-k ─► top-p ─► min-p ─► pick
//
//   Candidates are few, and found without a sort:
//
//     top-k        Each of the k largest block maxima is an element, so the k-th largest of them bounds the k-th
//                  largest element from below. Blocks below it are not read again. (k above the number of blocks:
//                  every token is a candidate.)
//     top-p alone  Tokens with w < (1 − topP) · Σw / vocabulary have less than 1 − topP of the weight together, so the
//                  prefix that top-p keeps ends before them.
//     neither      No candidates: a running sum over block_sum finds the block, one over its weights the token.
//
//   sampling/candidates.h then cuts them exactly.
//
// Cost: logits are read once from memory (4 or 2 bytes each), and where there is no top-k once more from cache.
// Microseconds for one row of 262,144 normally distributed f32 logits in L2 and L3, one thread of Zen 5:
//
//                                                              AVX-512   AVX2
//     argmax                                                        11     10
//     topK 64, topP 0.95                                            15     15
//     temperature alone                                             71    167
//     topP 0.95 alone, 12 % of the tokens being candidates         330    570
//     topP 0.95 alone, nearly all being candidates                 690   1300
//     topK 2000                                                    480    710
//
// Scratch: 12 bytes per token of the vocabulary and thread for candidates (3 MiB of 262,144), touched as far as used.
#pragma once
#include <cstring>

#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/candidates.h"
#include "kernels/cpu/sampling/logit_rows.h"
#include "kernels/cpu/sampling/philox.h"
#include "ops/sampling.h"

namespace lapidary {
namespace {

// ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────
enum class Method : uint8_t { invalid, greedy, top_k, top_p, all };

struct Settings {
  Method method;
  float temperature, top_p, min_p;
  int64_t top_k;
};

Settings settings_of(const Call& call, int64_t row) {
  SampleParams p = call.params_as<SampleParams>();
  const TensorView& table = call.in[SampleInput::settings];
  if (table.present()) memcpy(&p, table.as<float>() + 4 * row, sizeof p);
  const float vocabulary = float(call.in[SampleInput::logits].dims[1]);
  Settings settings = {Method::invalid, p.temperature, p.top_p, p.min_p, 0};
  const bool valid = p.temperature >= 0 && p.temperature < kInfinity && p.top_k >= 0 && p.top_k < kInfinity &&
                     p.top_p >= 0 && p.top_p <= 1 && p.min_p >= 0 && p.min_p <= 1;
  if (!valid) return settings;
  settings.method = p.temperature < 0x1p-126f              ? Method::greedy
                    : p.top_k >= 1 && p.top_k < vocabulary ? Method::top_k
                    : p.top_p < 1                          ? Method::top_p
                                                           : Method::all;
  if (settings.method == Method::top_k) settings.top_k = int64_t(p.top_k);
  return settings;
}

Weigher weigher_of(const Settings& settings, float max) { return {max, 1 / settings.temperature}; }

// ── one row's token ──────────────────────────────────────────────────────────────────────────────────────────────
struct RowTables {
  const float* block_max;
  double* block_sum;  // of a method that needs them; else free for the sums of candidates, which have fewer chunks
  int64_t blocks;
};

template <DType kDtype>
int32_t pick_from_all(const LogitRow<kDtype>& row, const Weigher& weigher, float least, const RowTables& tables,
                      double fraction) {
  double total = 0;
  for (int64_t block = 0; block < tables.blocks; ++block) total += tables.block_sum[block];
  const Position position = find_chunk(tables.block_sum, tables.blocks, fraction * total);
  float weights[kBlock];
  double sum;
  const int n = block_weights(row, weigher, position.chunk, weights);
  sum_weights(weights, n, least, &sum);
  return int32_t(position.chunk * kBlock + find_in_chunk(weights, n, position.before, fraction * total));
}

int32_t pick_from(const Candidates& candidates, float least, double* chunk_sum, double fraction) {
  const double target = fraction * sum_weights(candidates.weight, candidates.count, least, chunk_sum);
  const int64_t chunks = (candidates.count + kChunk - 1) / kChunk;
  const Position position = find_chunk(chunk_sum, chunks, target);
  const int64_t first = position.chunk * kChunk;
  const int n = int(candidates.count - first < kChunk ? candidates.count - first : kChunk);
  return candidates.id[first + find_in_chunk(candidates.weight + first, n, position.before, target)];
}

template <DType kDtype>
int32_t sample_row(const LogitRow<kDtype>& row, const Settings& settings, const RowTables& tables,
                   Candidates candidates, double fraction) {
  const float max = row_maximum(tables.block_max, tables.blocks);
  if (settings.method == Method::greedy || !(max > -kInfinity && max < kInfinity)) {
    return first_index_of_maximum(row, tables.block_max, tables.blocks);
  }
  const Weigher weigher = weigher_of(settings, max);
  if (settings.method == Method::all) return pick_from_all(row, weigher, settings.min_p, tables, fraction);

  float bound = -kInfinity;
  double total = 0;
  if (settings.method == Method::top_k) {
    const int64_t k = settings.top_k;
    if (k <= tables.blocks) bound = find_cutoff({tables.block_max, nullptr, tables.blocks}, bound, max, double(k)).x;
    gather(row, tables.block_max, tables.blocks, bound, candidates);
    if (candidates.count > k) {
      keep_best(candidates, find_cutoff({candidates.x, nullptr, candidates.count}, bound, max, double(k)));
    }
    weigh(weigher, candidates);
    total = sum_weights(candidates.weight, candidates.count, 0, tables.block_sum);
  } else {
    for (int64_t block = 0; block < tables.blocks; ++block) total += tables.block_sum[block];
    bound = bound_of_weight(weigher, (1 - double(settings.top_p)) * total / double(row.vocabulary));
    gather(row, tables.block_max, tables.blocks, bound, candidates);
    weigh(weigher, candidates);
  }
  if (settings.top_p < 1) {
    const Numbers numbers = {candidates.x, candidates.weight, candidates.count};
    drop_weights(candidates, find_cutoff(numbers, bound, max, double(settings.top_p) * total));
  }
  return pick_from(candidates, settings.min_p, tables.block_sum, fraction);
}

// ── the kernels ───────────────────────────────────────────────────────────────────────────────────────────────────
size_t padded(size_t bytes) { return (bytes + 127) & ~size_t(127); }

// Shared tables of a wave, then each thread's candidates.
struct Scratch {
  float* block_max;
  double* block_sum;
  unsigned char* candidates;
  size_t candidate_bytes;
};

size_t max_bytes(const Call& call, int threads) {
  return padded(size_t(block_count(call.in[0].dims[1]) * threads) * sizeof(float));
}
size_t sum_bytes(const Call& call, int threads) { return 2 * max_bytes(call, threads); }
// A gather writes up to kLanes entries past the last candidate it keeps.
size_t candidate_bytes(const Call& call) { return padded(size_t(call.in[0].dims[1] + kLanes) * 4); }

size_t argmax_scratch(const Call& call, int threads) { return max_bytes(call, threads); }
size_t sample_scratch(const Call& call, int threads) {
  return max_bytes(call, threads) + sum_bytes(call, threads) + 3 * candidate_bytes(call) * size_t(threads);
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

template <DType kDtype>
void argmax_rows(const Call& call, Team& team) {
  const int64_t rows = call.in[0].dims[0], blocks = block_count(call.in[0].dims[1]);
  float* block_max = reinterpret_cast<float*>(team.scratch);
  for (int64_t first = 0; first < rows; first += team.threads) {
    const int64_t wave = rows - first < team.threads ? rows - first : team.threads;
    if (first > 0) team_barrier(team);
    fill_block_max<kDtype>(call, team, first, wave, blocks, block_max);
    team_barrier(team);
    if (team.thread >= wave) continue;
    const int64_t row = first + team.thread;
    call.out[0].as<int32_t>()[row] =
        first_index_of_maximum(logit_row<kDtype>(call, row), block_max + team.thread * blocks, blocks);
  }
}

bool needs_sums(Method method) { return method == Method::top_p || method == Method::all; }

template <DType kDtype>
void fill_block_sum(const Call& call, const Team& team, int64_t first_row, int64_t rows, int64_t blocks,
                    const Scratch& scratch) {
  int64_t current = -1;
  Settings settings = {};
  Weigher weigher = {};
  bool wanted = false;
  for_blocks(team, rows, blocks, [&](int64_t row, int64_t block) {
    if (row != current) {
      current = row;
      settings = settings_of(call, first_row + row);
      const float max = row_maximum(scratch.block_max + row * blocks, blocks);
      wanted = needs_sums(settings.method) && max > -kInfinity && max < kInfinity;
      if (wanted) weigher = weigher_of(settings, max);
    }
    if (!wanted) return;
    float weights[kBlock];
    const int n = block_weights(logit_row<kDtype>(call, first_row + row), weigher, block, weights);
    // Top-p is a share of all weights; min-p comes after it.
    const float least = settings.method == Method::all ? settings.min_p : 0;
    sum_weights(weights, n, least, scratch.block_sum + row * blocks + block);
  });
}

double next_fraction(const Call& call, int64_t row) {
  int32_t* state = call.in[SampleInput::state].as<int32_t>() + 2 * row;
  const uint32_t seed = uint32_t(state[0]), counter = uint32_t(state[1]);
  state[1] = int32_t(counter + 1);
  return uniform_fraction(philox4x32({{counter, 0, 0, 0}}, seed, 0));
}

template <DType kDtype>
void sample_rows(const Call& call, Team& team) {
  const int64_t rows = call.in[0].dims[0], blocks = block_count(call.in[0].dims[1]);
  Scratch scratch;
  scratch.block_max = reinterpret_cast<float*>(team.scratch);
  scratch.block_sum = reinterpret_cast<double*>(team.scratch + max_bytes(call, team.threads));
  scratch.candidate_bytes = candidate_bytes(call);
  scratch.candidates = team.scratch + max_bytes(call, team.threads) + sum_bytes(call, team.threads) +
                       3 * scratch.candidate_bytes * size_t(team.thread);
  const Candidates candidates = {reinterpret_cast<float*>(scratch.candidates),
                                 reinterpret_cast<float*>(scratch.candidates + scratch.candidate_bytes),
                                 reinterpret_cast<int32_t*>(scratch.candidates + 2 * scratch.candidate_bytes), 0};
  for (int64_t first = 0; first < rows; first += team.threads) {
    const int64_t wave = rows - first < team.threads ? rows - first : team.threads;
    if (first > 0) team_barrier(team);
    fill_block_max<kDtype>(call, team, first, wave, blocks, scratch.block_max);
    team_barrier(team);
    bool sums = false;
    for (int64_t row = first; row < first + wave; ++row) sums |= needs_sums(settings_of(call, row).method);
    if (sums) {
      fill_block_sum<kDtype>(call, team, first, wave, blocks, scratch);
      team_barrier(team);
    }
    if (team.thread >= wave) continue;
    const int64_t row = first + team.thread;
    const double fraction = next_fraction(call, row);
    const Settings settings = settings_of(call, row);
    int32_t token = 0;
    if (settings.method == Method::invalid) {
      team_fail(
          team, Code::kInvalidArgument,
          "sample: settings: expected temperature and topK at least 0, topP and minP from 0 to 1, in row %lld of %lld",
          row, rows);
    } else {
      const RowTables tables = {scratch.block_max + team.thread * blocks, scratch.block_sum + team.thread * blocks,
                                blocks};
      token = sample_row(logit_row<kDtype>(call, row), settings, tables, candidates, fraction);
    }
    call.out[0].as<int32_t>()[row] = token;
  }
}

void argmax(const Call& call, Team& team) {
  call.in[0].dtype == DType::f32 ? argmax_rows<DType::f32>(call, team) : argmax_rows<DType::bf16>(call, team);
}

void sample(const Call& call, Team& team) {
  call.in[0].dtype == DType::f32 ? sample_rows<DType::f32>(call, team) : sample_rows<DType::bf16>(call, team);
}

const Kernel kKernels[] = {{OpId::argmax, argmax, argmax_scratch}, {OpId::sample, sample, sample_scratch}};

}  // namespace
}  // namespace lapidary
