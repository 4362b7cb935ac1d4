// sampling: the largest logit, or a random token by temperature, top-k, top-p and min-p. Formula and contract:
// ops/sampling.h.
//
// Algorithm
//   Rows are shared out whole, the rest of them in one wave (sampling/waves.h). A row's vocabulary is cut into blocks of
//   256, whatever the number of threads, so that sums have one order.
//
//     all threads    every block's largest x                               ─► block_max  [rows of the wave, blocks]
//     all threads    every block's Σw, where a row of the wave needs it    ─► block_sum  [rows of the wave, blocks]
//     one per row    candidates ─► top-k ─► top-p ─► min-p ─► pick
//
//   Candidates are few, and found without a sort:
//
//     top-k        Each of the k largest block maxima is an element, so the k-th largest of them bounds the k-th
//                  largest element from below. Blocks below it are not read again.
//     top-p alone  Cutoffs are searched by all threads, in passes over all tokens: sampling/row_search.h. So is that of a k
//                  above the number of blocks. Tokens with w < (1 − topP) · Σw / vocabulary have less than 1 − topP of
//                  the weight together, so the prefix that top-p keeps ends before them.
//     neither      No candidates: a running sum over block_sum finds the block, one over its weights the token.
//
//   sampling/candidates.h then cuts them exactly.
//
// Cost: logits are read once from memory (4 or 2 bytes each), and where there is no top-k once more from cache.
// Microseconds of processor time for one row of 262,144 f32 logits in L2 and L3, Zen 5; threads share it evenly:
//
//                                                              AVX-512   AVX2
//     argmax                                                        11     10
//     topK 64, topP 0.95                                            14     17
//     temperature alone                                             69    107
//     topP 0.95 alone, of logits with a few likely tokens          119    252
//     topP 0.95 alone, of normally distributed logits              251    475
//     topP 0.95 alone, of nearly equal logits                      321    639
//     topK 2000, of normally distributed logits                    210    404
//
// Scratch: 12 bytes per token of the vocabulary and thread for candidates (3 MiB of 262,144), touched as far as used.
#pragma once
#include <cstring>

#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/candidates.h"
#include "kernels/cpu/sampling/log_probs.h"
#include "kernels/cpu/sampling/logit_rows.h"
#include "kernels/cpu/sampling/penalties.h"
#include "kernels/cpu/sampling/philox.h"
#include "kernels/cpu/sampling/row_search.h"
#include "kernels/cpu/sampling/waves.h"
#include "ops/sampling.h"

namespace lapidary {
namespace {

// ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────
enum class Method : uint8_t { invalid, greedy, top_k, search, all };

struct Settings {
  Method method;
  float temperature, top_p, min_p;
  int64_t top_k;  // 0: all
};

Settings settings_of(const Call& call, int64_t row) {
  SampleParams p = call.params_as<SampleParams>();
  const TensorView& table = call.in[SampleInput::settings];
  if (table.present()) memcpy(&p, table.as<float>() + 4 * row, sizeof p);
  const int64_t vocabulary = call.in[SampleInput::logits].dims[1];
  Settings settings = {Method::invalid, p.temperature, p.top_p, p.min_p, 0};
  const bool valid = p.temperature >= 0 && p.temperature < kInfinity && p.top_k >= 0 && p.top_k < kInfinity &&
                     p.top_p >= 0 && p.top_p <= 1 && p.min_p >= 0 && p.min_p <= 1;
  if (!valid) return settings;
  if (p.top_k >= 1 && p.top_k < float(vocabulary)) settings.top_k = int64_t(p.top_k);
  settings.method = p.temperature < 0x1p-126f                  ? Method::greedy
                    : settings.top_k > block_count(vocabulary) ? Method::search
                    : settings.top_k > 0                       ? Method::top_k
                    : p.top_p < 1                              ? Method::search
                                                               : Method::all;
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

// Of a row whose cutoffs were applied to all its weights.
int32_t pick_from_searched(const float* weights, int64_t vocabulary, const RowTables& tables, double fraction) {
  double total = 0;
  for (int64_t block = 0; block < tables.blocks; ++block) total += tables.block_sum[block];
  const Position position = find_chunk(tables.block_sum, tables.blocks, fraction * total);
  const int64_t first = position.chunk * kBlock;
  const int n = int(vocabulary - first < kBlock ? vocabulary - first : kBlock);
  return int32_t(first + find_in_chunk(weights + first, n, position.before, fraction * total));
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

  if (settings.method == Method::search) return pick_from_searched(candidates.weight, row.vocabulary, tables, fraction);

  const float bound = find_top(row, tables.block_max, tables.blocks, max, settings.top_k, candidates);
  weigh(weigher, candidates);
  if (settings.top_p < 1) {
    const double total = sum_weights(candidates.weight, candidates.count, 0, tables.block_sum);
    const Numbers numbers = {candidates.x, candidates.weight, candidates.count};
    drop_weights(candidates, find_cutoff(numbers, bound, max, double(settings.top_p) * total));
  }
  return pick_from(candidates, settings.min_p, tables.block_sum, fraction);
}

// ── the kernels ───────────────────────────────────────────────────────────────────────────────────────────────────
template <DType kDtype>
void argmax_wave(const Call& call, Team& team, int64_t first, int64_t rows) {
  const int64_t blocks = block_count(call.in[0].dims[1]);
  float* block_max = reinterpret_cast<float*>(team.scratch);
  fill_block_max<kDtype>(call, team, first, rows, blocks, block_max);
  team_barrier(team);
  if (team.thread >= rows) return;
  const int64_t row = first + team.thread;
  call.out[0].as<int32_t>()[row] =
      first_index_of_maximum(logit_row<kDtype>(call, row), block_max + team.thread * blocks, blocks);
}

// Beside the tables of waves.h: a search of each row of the wave, and what its passes find.
struct SampleScratch : WaveScratch {
  RowSearch* searches;
  float* pass_sums;  // [rows of the wave, groups, kThresholds]
  int32_t* equals;   // [rows of the wave, blocks]

  LAPIDARY_MEMBER_INLINE SearchedRow searched_row(int64_t row, int64_t vocabulary) const {
    const int64_t blocks = block_count(vocabulary);
    const Candidates arrays = candidates(row);
    return {arrays.x,
            arrays.weight,
            block_max + row * blocks,
            vocabulary,
            block_sum + row * blocks,
            pass_sums + row * group_count(blocks) * kThresholds,
            equals + row * blocks};
  }
};

size_t search_bytes(int threads) { return padded(sizeof(RowSearch) * size_t(threads)); }
size_t pass_bytes(const Call& call, int threads) {
  return padded(size_t(group_count(block_count(call.in[0].dims[1]))) * kThresholds * sizeof(float) * size_t(threads));
}
size_t sample_bytes(const Call& call, int threads) {
  return wave_bytes(call, threads) + search_bytes(threads) + pass_bytes(call, threads) + max_bytes(call, threads);
}

SampleScratch sample_scratch_of(const Call& call, const Team& team) {
  SampleScratch scratch = {wave_scratch_of(call, team), nullptr, nullptr, nullptr};
  unsigned char* p = team.scratch + wave_bytes(call, team.threads);
  scratch.searches = reinterpret_cast<RowSearch*>(p);
  p += search_bytes(team.threads);
  scratch.pass_sums = reinterpret_cast<float*>(p);
  p += pass_bytes(call, team.threads);
  scratch.equals = reinterpret_cast<int32_t*>(p);
  return scratch;
}

// Sums of the weights of all blocks, where a row's method needs them; of rows to search the weights themselves too.
template <DType kDtype>
void fill_block_sum(const Call& call, const Team& team, int64_t first_row, int64_t rows, int64_t blocks,
                    const SampleScratch& scratch) {
  int64_t current = -1;
  Settings settings = {};
  Weigher weigher = {};
  Candidates arrays = {};
  for_blocks(team, rows, blocks, [&](int64_t row, int64_t block) {
    if (row != current) {
      current = row;
      settings = settings_of(call, first_row + row);
      arrays = scratch.candidates(row);
      const float max = row_maximum(scratch.block_max + row * blocks, blocks);
      if (!(max > -kInfinity && max < kInfinity)) settings.method = Method::greedy;
      weigher = weigher_of(settings, max);
    }
    const LogitRow<kDtype> logits = logit_row<kDtype>(call, first_row + row);
    double* sum = scratch.block_sum + row * blocks + block;
    if (settings.method == Method::all) {
      float weights[kBlock];
      const int n = block_weights(logits, weigher, block, weights);
      sum_weights(weights, n, settings.min_p, sum);
    } else if (settings.method == Method::search) {
      const int64_t begin = block * kBlock;
      const int64_t end = begin + kBlock < logits.vocabulary ? begin + kBlock : logits.vocabulary;
      fill_search_block(logits, weigher, block, arrays.x, arrays.weight);
      sum_weights(arrays.weight + begin, end - begin, 0, sum);
    }
  });
}

// What the wave's rows need beyond their maxima.
struct Needs {
  bool sums, search;
};

Needs needs_of(const Call& call, int64_t first_row, int64_t rows) {
  Needs needs = {false, false};
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const Method method = settings_of(call, row).method;
    needs.search |= method == Method::search;
    needs.sums |= method == Method::all || method == Method::search;
  }
  return needs;
}

void prepare_search(const Call& call, int64_t row, float max, RowSearch& search) {
  const Settings settings = settings_of(call, row);
  const bool searched = settings.method == Method::search && max > -kInfinity && max < kInfinity;
  search.stage = searched ? Stage::start : Stage::none;
  if (!searched) return;
  search.weigher = weigher_of(settings, max);
  search.top_k = settings.top_k;
  search.top_p = settings.top_p;
  search.min_p = settings.min_p;
}

double next_fraction(const Call& call, int64_t row) {
  int32_t* state = call.in[SampleInput::state].as<int32_t>() + 2 * row;
  const uint32_t seed = uint32_t(state[0]), counter = uint32_t(state[1]);
  state[1] = int32_t(counter + 1);
  return uniform_fraction(philox4x32({{counter, 0, 0, 0}}, seed, 0));
}

template <DType kDtype>
void sample_wave(const Call& call, Team& team, int64_t first, int64_t rows) {
  const int64_t blocks = block_count(call.in[0].dims[1]);
  const SampleScratch scratch = sample_scratch_of(call, team);
  fill_block_max<kDtype>(call, team, first, rows, blocks, scratch.block_max);
  team_barrier(team);
  const Needs needs = needs_of(call, first, rows);
  if (needs.sums) {
    fill_block_sum<kDtype>(call, team, first, rows, blocks, scratch);
    team_barrier(team);
  }
  if (needs.search) {
    if (team.thread < rows) {
      const float max = row_maximum(scratch.block_max + team.thread * blocks, blocks);
      prepare_search(call, first + team.thread, max, scratch.searches[team.thread]);
    }
    search_rows(team, rows, blocks, scratch.searches,
                [&](int64_t row) { return scratch.searched_row(row, call.in[0].dims[1]); });
  }
  if (team.thread >= rows) return;
  const int64_t row = first + team.thread;
  const double fraction = next_fraction(call, row);
  const Settings settings = settings_of(call, row);
  int32_t token = 0;
  if (settings.method == Method::invalid) {
    team_fail(
        team, Code::kInvalidArgument,
        "sample: settings: expected temperature and topK at least 0, topP and minP from 0 to 1, in row %lld of %lld",
        row, call.in[0].dims[0]);
  } else {
    const RowTables tables = {scratch.block_max + team.thread * blocks, scratch.block_sum + team.thread * blocks,
                              blocks};
    token = sample_row(logit_row<kDtype>(call, row), settings, tables, scratch.candidates(team.thread), fraction);
  }
  call.out[0].as<int32_t>()[row] = token;
}

void argmax(const Call& call, Team& team) {
  for_waves<maxima_bytes>(call, team, [&](Team& members, int64_t first, int64_t rows) {
    call.in[0].dtype == DType::f32 ? argmax_wave<DType::f32>(call, members, first, rows)
                                   : argmax_wave<DType::bf16>(call, members, first, rows);
  });
}

void sample(const Call& call, Team& team) {
  for_waves<sample_bytes>(call, team, [&](Team& members, int64_t first, int64_t rows) {
    call.in[0].dtype == DType::f32 ? sample_wave<DType::f32>(call, members, first, rows)
                                   : sample_wave<DType::bf16>(call, members, first, rows);
  });
}

const Kernel kKernels[] = {
    {OpId::argmax, argmax, waves_scratch<maxima_bytes>},     {OpId::sample, sample, waves_scratch<sample_bytes>},
    {OpId::adjust_logits, adjust_logits, nullptr},           {OpId::count_tokens, count_tokens, nullptr},
    {OpId::log_probs, log_probs, waves_scratch<wave_bytes>},
};

}  // namespace
}  // namespace lapidary
