// sampling/penalties.cuh: adjust_logits and count_tokens. Formulas and contracts: ops/sampling.h.
#pragma once
#include "kernels/cuda/launch.h"
#include "ops/sampling.h"

namespace lapidary::cuda {

struct AdjustLogitsArguments {
  const unsigned char* logits;
  int64_t stride;  // elements between rows; the output's rows lie close together
  const int32_t* rows;
  const float* settings;
  const int32_t* counts;  // may be null
  int64_t counts_stride;
  const float* bias;  // may be null
  int64_t bias_stride;
  const int32_t* mask;  // may be null
  int64_t mask_stride;
  float* out;
  int64_t row_count, vocabulary, sequences;
  bool f32;
  ErrorReporter errors;
};

// A block takes 4,096 tokens of a row: everything is read once and written once.
struct AdjustLogits {
  using Params = AdjustLogitsArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr int64_t kPiece = 4096;
  enum Message : uint32_t { kSettings, kRows };

  struct AdjustedRow {
    const int32_t* counts;  // null: no penalties
    const float* bias;
    Penalties penalties;
  };

  // What belongs to a row of logits; nothing where its data are bad.
  LAPIDARY_DEVICE static AdjustedRow adjusted_row(const Params& p, int64_t row, bool reports) {
    const AdjustedRow none = {nullptr, nullptr, {1, 0, 0}};
    const int64_t sequence = dev::load(p.rows + row);
    if (sequence == -1) return none;
    const float* settings = p.settings + 3 * row;
    const Penalties penalties = {dev::load(settings), dev::load(settings + 1), dev::load(settings + 2)};
    const bool valid = penalties.repetition > 0 && penalties.repetition - penalties.repetition == 0 &&
                       penalties.presence - penalties.presence == 0 && penalties.frequency - penalties.frequency == 0;
    if (!valid) {
      if (reports) p.errors.report(kSettings, row, p.row_count);
      return none;
    }
    if (sequence < 0 || sequence >= p.sequences) {
      if (reports) p.errors.report(kRows, p.sequences - 1, sequence);
      return none;
    }
    const bool neutral = penalties.repetition == 1 && penalties.presence == 0 && penalties.frequency == 0;
    return {p.counts && !neutral ? p.counts + sequence * p.counts_stride : nullptr,
            p.bias ? p.bias + sequence * p.bias_stride : nullptr, penalties};
  }

  LAPIDARY_DEVICE static float penalised(float x, int32_t count, const Penalties& p) {
    const bool prompt = count >= kPromptBit;
    const int32_t generated = prompt ? count - kPromptBit : count > 0 ? count : 0;
    if (prompt || generated > 0) x = x > 0 ? dev::div(x, p.repetition) : x * p.repetition;
    // The product is rounded before it is subtracted: as a fused sum with −0 it cannot be fused with what follows.
    x -= dev::fma(p.frequency, float(generated), -0.f);
    return generated > 0 ? x - p.presence : x;
  }

  LAPIDARY_DEVICE static void run(const Params& p, unsigned char*) {
    const int64_t pieces = (p.vocabulary + kPiece - 1) / kPiece;
    for (int64_t item = dev::block_index_x(); item < p.row_count * pieces; item += dev::grid_size_x()) {
      const int64_t row = item / pieces, begin = (item - row * pieces) * kPiece;
      const int64_t end = begin + kPiece < p.vocabulary ? begin + kPiece : p.vocabulary;
      const AdjustedRow adjusted = adjusted_row(p, row, begin == 0 && dev::thread_index() == 0);
      const unsigned char* from = p.logits + row * p.stride * (p.f32 ? 4 : 2);
#pragma unroll 4
      for (int64_t i = begin + dev::thread_index(); i < end; i += kThreads) {
        float x = p.f32 ? dev::load(reinterpret_cast<const float*>(from) + i)
                        : dev::to_float(dev::load(reinterpret_cast<const dev::Bf16*>(from) + i));
        if (adjusted.counts != nullptr) x = penalised(x, dev::load(adjusted.counts + i), adjusted.penalties);
        if (adjusted.bias != nullptr) x += dev::load(adjusted.bias + i);
        // A warp reads one word.
        if (p.mask != nullptr && !(uint32_t(dev::load(p.mask + row * p.mask_stride + i / 32)) >> (i % 32) & 1))
          x = -__builtin_huge_valf();
        dev::store(p.out + row * p.vocabulary + i, x);
      }
    }
  }
};

struct CountTokensArguments {
  const int32_t *tokens, *rows;
  uint32_t* counts;
  int64_t stride, sequences, vocabulary, token_count;
  bool one_row, prompt;
  ErrorReporter errors;
};

// Two tokens may be the same: counts are changed by atomics, whose order does not matter.
struct CountTokens {
  using Params = CountTokensArguments;
  static constexpr int kThreads = 128, kMinBlocks = 1;
  enum Message : uint32_t { kRows, kTokens };

  LAPIDARY_DEVICE static void count(uint32_t* at) {
    constexpr uint32_t kFull = uint32_t(kPromptBit) - 1;
    uint32_t seen = dev::atomic_or(at, 0u);
    while ((seen & kFull) != kFull) {
      const uint32_t before = dev::atomic_compare_exchange(at, seen, seen + 1);
      if (before == seen) return;
      seen = before;
    }
  }

  LAPIDARY_DEVICE static void run(const Params& p, unsigned char*) {
    for (int64_t i = int64_t(dev::block_index_x()) * kThreads + dev::thread_index(); i < p.token_count;
         i += int64_t(dev::grid_size_x()) * kThreads) {
      const int64_t token = dev::load(p.tokens + i), row = dev::load(p.rows + (p.one_row ? 0 : i));
      if (row == -1) continue;
      if (row < 0 || row >= p.sequences) {
        p.errors.report(kRows, p.sequences - 1, row);
      } else if (token < 0 || token >= p.vocabulary) {
        p.errors.report(kTokens, p.vocabulary - 1, token);
      } else if (p.prompt) {
        dev::atomic_or(p.counts + row * p.stride + token, uint32_t(kPromptBit));
      } else {
        count(p.counts + row * p.stride + token);
      }
    }
  }
};

}  // namespace lapidary::cuda
