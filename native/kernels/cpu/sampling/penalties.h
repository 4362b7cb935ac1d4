// sampling/penalties.h: adjust_logits and count_tokens. Formulas and contracts: ops/sampling.h. Include after
// simd/<isa>.h.
//
// Pieces of 4,096 tokens of a row, shared out over the team: everything is read once and written once. One row of 262,144
// tokens with counts and bias moves 4 MiB. A mask is laid over a piece while it is in the first-level cache, a word of 32
// tokens at a time: a grammar mostly forbids or allows whole words.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/logit_rows.h"
#include "ops/sampling.h"

namespace lapidary {
namespace {

constexpr int64_t kPenaltyPiece = 4096;
static_assert(kPenaltyPiece % 32 == 0, "pieces begin with a word of the mask");

struct AdjustedRow {
  const int32_t* counts = nullptr;  // null: no penalties
  const float* bias = nullptr;
  Penalties penalties = {1, 0, 0};
};

// What belongs to a row of logits; nothing where its data are bad.
AdjustedRow adjusted_row(const Call& call, Team& team, int64_t row) {
  const TensorView &counts = call.in[AdjustLogitsInput::counts], &bias = call.in[AdjustLogitsInput::bias];
  AdjustedRow result;
  const int64_t sequence = call.in[AdjustLogitsInput::rows].as<int32_t>()[row];
  if (sequence == -1) return result;
  memcpy(&result.penalties, call.in[AdjustLogitsInput::settings].as<float>() + 3 * row, sizeof result.penalties);
  const Penalties& p = result.penalties;
  const bool valid =
      p.repetition > 0 && p.repetition < kInfinity && p.presence - p.presence == 0 && p.frequency - p.frequency == 0;
  if (!valid) {
    team_fail(team, Code::kInvalidArgument,
              "adjust_logits: settings: expected a repetition penalty above 0 and finite others, in row %lld of %lld",
              row, call.in[0].dims[0]);
    return {};
  }
  const int64_t sequences = counts.present() ? counts.dims[0] : bias.present() ? bias.dims[0] : INT64_MAX;
  if (sequence < 0 || sequence >= sequences) {
    team_fail(team, Code::kIndexOutOfRange, "adjust_logits: rows: expected -1 ... %lld, got %lld", sequences - 1,
              sequence);
    return {};
  }
  const bool neutral = p.repetition == 1 && p.presence == 0 && p.frequency == 0;
  if (counts.present() && !neutral) result.counts = counts.as<int32_t>() + sequence * counts.strides[0];
  if (bias.present()) result.bias = bias.as<float>() + sequence * bias.strides[0];
  return result;
}

LAPIDARY_INLINE simd::I32 load_counts(const int32_t* p, int n) {
  if (n == kLanes) return simd::load_i32(p);
  int32_t lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return simd::load_i32(lanes);
}

LAPIDARY_INLINE F32 penalised(F32 x, simd::I32 count, const Penalties& p) {
  const F32 zero = simd::zero();
  const simd::Mask prompt = simd::less(simd::set1_i32(kPromptBit - 1), count);
  const F32 times = simd::max(
      simd::select(prompt, simd::to_f32(simd::sub(count, simd::set1_i32(kPromptBit))), simd::to_f32(count)), zero);
  const simd::Mask generated = simd::less(zero, times);
  const F32 repetition = simd::set1(p.repetition);
  const F32 repeated = simd::select(simd::less(zero, x), simd::div(x, repetition), simd::mul(x, repetition));
  x = simd::select(generated, repeated, simd::select(prompt, repeated, x));
  x = simd::sub(x, simd::mul(simd::set1(p.frequency), times));
  return simd::sub(x, simd::select(generated, simd::set1(p.presence), zero));
}

template <DType kDtype>
void adjust_piece(const unsigned char* logits, const AdjustedRow& row, int64_t begin, int64_t end, float* out) {
  for (int64_t i = begin; i < end; i += kLanes) {
    const int n = lanes_at(i, end);
    F32 x;
    if constexpr (kDtype == DType::f32) {
      x = simd::load_first(reinterpret_cast<const float*>(logits) + i, n);
    } else {
      x = simd::load_bf16_first(reinterpret_cast<const uint16_t*>(logits) + i, n);
    }
    if (row.counts) x = penalised(x, load_counts(row.counts + i, n), row.penalties);
    if (row.bias) x = simd::add(x, simd::load_first(row.bias + i, n));
    simd::store_first(out + i, x, n);
  }
}

// -inf where a bit of the mask is 0, for tokens [begin, end) of a row.
void mask_piece(const int32_t* mask, int64_t begin, int64_t end, float* out) {
  for (int64_t first = begin; first < end; first += 32) {
    const int64_t count = end - first < 32 ? end - first : 32;
    const uint32_t word = uint32_t(mask[first / 32]);
    if (word == UINT32_MAX) continue;
    for (int64_t i = 0; i < count; ++i) {
      if (!(word >> i & 1)) out[first + i] = -kInfinity;
    }
  }
}

void adjust_logits(const Call& call, Team& team) {
  const TensorView &logits = call.in[AdjustLogitsInput::logits], &mask = call.in[AdjustLogitsInput::mask];
  const int64_t vocabulary = logits.dims[1];
  const int64_t pieces = (vocabulary + kPenaltyPiece - 1) / kPenaltyPiece;
  const Range range = team_range(team, logits.dims[0] * pieces);
  int64_t current = -1;
  AdjustedRow adjusted;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t row = i / pieces, begin = i % pieces * kPenaltyPiece;
    const int64_t end = vocabulary - begin < kPenaltyPiece ? vocabulary : begin + kPenaltyPiece;
    if (row != current) adjusted = adjusted_row(call, team, current = row);
    const unsigned char* from = logits.data + row * logits.strides[0] * info(logits.dtype).block_bytes;
    float* out = call.out[0].as<float>() + row * vocabulary;
    logits.dtype == DType::f32 ? adjust_piece<DType::f32>(from, adjusted, begin, end, out)
                               : adjust_piece<DType::bf16>(from, adjusted, begin, end, out);
    if (mask.present()) mask_piece(mask.as<int32_t>() + row * mask.strides[0], begin, end, out);
  }
}

// One thread: two tokens may be the same, and there are few.
void count_tokens(const Call& call, Team& team) {
  if (team.thread != 0) return;
  const TensorView &tokens = call.in[CountTokensInput::tokens], &rows = call.in[CountTokensInput::rows];
  const TensorView& counts = call.in[CountTokensInput::counts];
  const bool prompt = call.params_as<CountTokensParams>().prompt;
  for (int64_t i = 0; i < tokens.dims[0]; ++i) {
    const int64_t token = tokens.as<int32_t>()[i], row = rows.as<int32_t>()[rows.dims[0] == 1 ? 0 : i];
    if (row == -1) continue;
    if (row < 0 || row >= counts.dims[0]) {
      team_fail(team, Code::kIndexOutOfRange, "count_tokens: rows: expected -1 ... %lld, got %lld", counts.dims[0] - 1,
                row);
    } else if (token < 0 || token >= counts.dims[1]) {
      team_fail(team, Code::kIndexOutOfRange, "count_tokens: tokens: expected 0 ... %lld, got %lld", counts.dims[1] - 1,
                token);
    } else {
      int32_t& count = counts.as<int32_t>()[row * counts.strides[0] + token];
      if (prompt)
        count |= kPromptBit;
      else if ((count & (kPromptBit - 1)) != kPromptBit - 1)
        ++count;
    }
  }
}

}  // namespace
}  // namespace lapidary
