// sampling/log_probs.h: log_probs. Formula and contract: ops/sampling.h. Include after simd/<isa>.h.
//
// Rows are shared out as for sample. In a wave, all threads find the blocks' maxima, then their sums of exponentials; one
// thread per row takes the logarithm and finds the largest.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/logit_rows.h"
#include "kernels/cpu/sampling/waves.h"
#include "ops/sampling.h"

namespace lapidary {
namespace {

// ln of a normal number of at least 1: 2 · artanh((m − 1) / (m + 1)) of its mantissa m in [1/√2, √2), plus its exponent.
// The series to the 21st power leaves 2⁻⁶⁰. Of our own, because libm's newest version of log needs glibc 2.29.
double natural_logarithm(double x) {
  const uint64_t bits = __builtin_bit_cast(uint64_t, x);
  int exponent = int(bits >> 52) - 1023;
  double mantissa = __builtin_bit_cast(double, (bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  const double z = (mantissa - 1) / (mantissa + 1), square = z * z;
  double series = 0;
  for (int power = 21; power >= 1; power -= 2) series = series * square + 1.0 / power;
  return exponent * 0.6931471805599453 + 2 * z * series;
}

// Largest first, of equals the lower id; there are at most kMaxTop, in order of id.
void sort_descending(const Candidates& candidates) {
  for (int64_t i = 1; i < candidates.count; ++i) {
    const float x = candidates.x[i];
    const int32_t id = candidates.id[i];
    int64_t at = i;
    for (; at > 0 && candidates.x[at - 1] < x; --at) {
      candidates.x[at] = candidates.x[at - 1];
      candidates.id[at] = candidates.id[at - 1];
    }
    candidates.x[at] = x;
    candidates.id[at] = id;
  }
}

// y of one row.
struct LogSoftmax {
  double largest, logarithm;  // NaN where there is no softmax
  float operator()(float x) const {
    if (logarithm == logarithm && x != x) return -kInfinity;
    return float(double(x) - largest - logarithm);
  }
};

template <DType kDtype>
void log_probs_row(const Call& call, Team& team, int64_t row, const float* block_max, const double* block_sum,
                   Candidates candidates) {
  const LogitRow<kDtype> logits = logit_row<kDtype>(call, row);
  const int64_t blocks = block_count(logits.vocabulary);
  const float max = row_maximum(block_max, blocks);
  LogSoftmax softmax = {max, __builtin_nan("")};
  if (max > -kInfinity && max < kInfinity) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += block_sum[block];
    softmax.logarithm = natural_logarithm(total);
  }

  const int64_t token = call.in[LogProbsInput::tokens].as<int32_t>()[row];
  float& chosen = call.out[0].as<float>()[row];
  chosen = __builtin_nanf("");
  if (token < 0 || token >= logits.vocabulary) {
    team_fail(team, Code::kIndexOutOfRange, "log_probs: tokens: expected 0 ... %lld, got %lld", logits.vocabulary - 1,
              token);
  } else {
    float x[kLanes];
    simd::store(x, logits.load(token, 1));
    chosen = softmax(x[0]);
  }

  const int64_t top = call.params_as<LogProbsParams>().top;
  if (top == 0) return;
  find_top(logits, block_max, blocks, max, top, candidates);
  sort_descending(candidates);
  int32_t* ids = call.out[1].as<int32_t>() + row * top;
  float* values = call.out[2].as<float>() + row * top;
  for (int64_t i = 0; i < top; ++i) {
    const bool found = i < candidates.count;
    ids[i] = found ? candidates.id[i] : -1;
    values[i] = softmax(found ? candidates.x[i] : -kInfinity);
  }
}

template <DType kDtype>
void log_probs_wave(const Call& call, Team& team, int64_t first, int64_t rows) {
  const int64_t blocks = block_count(call.in[0].dims[1]);
  const WaveScratch scratch = wave_scratch_of(call, team);
  fill_block_max<kDtype>(call, team, first, rows, blocks, scratch.block_max);
  team_barrier(team);
  int64_t current = -1;
  float max = 0;
  for_blocks(team, rows, blocks, [&](int64_t row, int64_t block) {
    if (row != current) max = row_maximum(scratch.block_max + (current = row) * blocks, blocks);
    if (!(max > -kInfinity && max < kInfinity)) return;
    float weights[kBlock];
    const int n = block_weights(logit_row<kDtype>(call, first + row), {max, 1}, block, weights);
    sum_weights(weights, n, 0, scratch.block_sum + row * blocks + block);
  });
  team_barrier(team);
  if (team.thread >= rows) return;
  log_probs_row<kDtype>(call, team, first + team.thread, scratch.block_max + team.thread * blocks,
                        scratch.block_sum + team.thread * blocks, scratch.candidates(team.thread));
}

void log_probs(const Call& call, Team& team) {
  for_waves<wave_bytes>(call, team, [&](Team& members, int64_t first, int64_t rows) {
    call.in[0].dtype == DType::f32 ? log_probs_wave<DType::f32>(call, members, first, rows)
                                   : log_probs_wave<DType::bf16>(call, members, first, rows);
  });
}

}  // namespace
}  // namespace lapidary
