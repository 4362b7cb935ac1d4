// sampling/log_probs.cuh: log_probs: a block of threads per row. Formula and contract: ops/sampling.h.
#pragma once
#include "kernels/cuda/sampling/cutoffs.cuh"
#include "ops/sampling.h"

namespace lapidary::cuda {

struct LogProbsArguments {
  LogitTable table;
  const float* maxima;
  uint32_t* chunk_counts;  // [rows, chunks]
  const int32_t* tokens;
  float* chosen;
  int32_t* ids;
  float* values;
  int top;
  ErrorReporter errors;
};

struct LogProbsScratch {
  SearchScratch search;
  double sums[kMostWarps];
  float best_x[kMaxTop];
  int32_t best_id[kMaxTop];
};

struct LogProbs {
  using Params = LogProbsArguments;
  static constexpr int kThreads = 512, kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(LogProbsScratch);
  enum Message : uint32_t { kTokens };

  // y of one row; `logarithm` is NaN where there is no softmax.
  struct LogSoftmax {
    double largest, logarithm;
    LAPIDARY_DEVICE float operator()(float x) const {
      if (logarithm == logarithm && x != x) return -kLogitInfinity;
      return float(double(x) - largest - logarithm);
    }
  };

  // Σ e^(x − largest): f32 within a lane's share of a chunk, double beyond.
  LAPIDARY_DEVICE static double sum_exponentials(const RowSource& source, float largest, LogProbsScratch& scratch) {
    double total = 0;
    for (int64_t c = dev::warp_index(); c * kChunk < source.count(); c += kThreads / dev::kWarp) {
      float sum = 0;
      for (int i = 0; i < kChunk; i += dev::kWarp) {
        const int64_t at = c * kChunk + i + dev::lane();
        const float x = at < source.count() ? source.x(at) : -kLogitInfinity;
        if (x > -kLogitInfinity) sum += dev::exp(x - largest);
      }
      total += double(sum);
    }
    return block_combine(total, scratch.sums, Sum());
  }

  // The `top` largest, in order of id; fewer where there are not as many numbers. Returns how many.
  template <class Source>
  LAPIDARY_DEVICE static int gather_best(const Source& source, float bound, float largest, const Params& p,
                                         uint32_t* counts, LogProbsScratch& scratch) {
    const Cutoff cutoff = top_k_cutoff(source, bound, largest, uint64_t(p.top), scratch.search);
    const auto above = [&](float x) { return x > cutoff.x; };
    const auto equal = [&](float x) { return x == cutoff.x; };
    // Those above the cutoff, then as many of its equals as there is room for; the order among them is made later.
    const uint64_t greater = count_chunks(source, counts, scratch.search, above);
    const auto put = [&](float x, int32_t id, uint64_t at) {
      if (at >= uint64_t(p.top)) return;
      dev::store_shared(scratch.best_x + at, x);
      dev::store_shared(scratch.best_id + at, id);
    };
    for_ranked(source, counts, above, [&](float x, int32_t id, uint32_t rank) { put(x, id, rank); });
    const uint64_t equals = count_chunks(source, counts, scratch.search, equal);
    for_ranked(source, counts, equal, [&](float x, int32_t id, uint32_t rank) { put(x, id, greater + rank); });
    dev::block_barrier();
    const uint64_t found = greater + equals;
    return int(found < uint64_t(p.top) ? found : uint64_t(p.top));
  }

  LAPIDARY_DEVICE static void write_best(const Params& p, int64_t row, int found, const LogSoftmax& softmax,
                                         LogProbsScratch& scratch) {
    for (int i = dev::thread_index(); i < p.top; i += kThreads) {
      if (i >= found) {
        dev::store(p.ids + row * p.top + i, int32_t(-1));
        dev::store(p.values + row * p.top + i, softmax(-kLogitInfinity));
        continue;
      }
      const float x = dev::load_shared(scratch.best_x + i);
      const int32_t id = dev::load_shared(scratch.best_id + i);
      int rank = 0;  // how many come before it: largest first, of equals the lower id
      for (int other = 0; other < found; ++other) {
        const float y = dev::load_shared(scratch.best_x + other);
        rank += y > x || (y == x && dev::load_shared(scratch.best_id + other) < id) ? 1 : 0;
      }
      dev::store(p.ids + row * p.top + rank, id);
      dev::store(p.values + row * p.top + rank, softmax(x));
    }
  }

  LAPIDARY_DEVICE static void run(const Params& p, unsigned char* shared) {
    auto& scratch = *reinterpret_cast<LogProbsScratch*>(shared);
    const int64_t chunks = chunk_count(p.table.vocabulary);
    for (int64_t row = dev::block_index_x(); row < p.table.rows; row += dev::grid_size_x()) {
      const float* maxima = p.maxima + row * chunks;
      uint32_t* counts = p.chunk_counts + row * chunks;
      RowSource source = {logit_row(p.table, row), maxima, -kLogitInfinity};
      const float largest = row_maximum(maxima, chunks, scratch.search.floats);
      LogSoftmax softmax = {double(largest), dev::bit_cast<double>(uint64_t(0x7ff8000000000000))};
      if (largest > -kLogitInfinity && largest < kLogitInfinity)
        softmax.logarithm = ::log(sum_exponentials(source, largest, scratch));

      if (dev::thread_index() == 0) {
        const int64_t token = dev::load(p.tokens + row);
        const bool inside = token >= 0 && token < p.table.vocabulary;
        if (!inside) p.errors.report(kTokens, p.table.vocabulary - 1, token);
        dev::store(p.chosen + row, inside ? softmax(source.x(token)) : dev::bit_cast<float>(0x7fc00000u));
      }
      if (p.top == 0) continue;
      source.bound = bound_of_top(maxima, chunks, largest, uint64_t(p.top), scratch.search);
      const uint64_t few = gather_few(source, counts, scratch.search);
      const int found = few > kFew ? gather_best(source, source.bound, largest, p, counts, scratch)
                                   : gather_best(ListSource{&scratch.search, int64_t(few)}, source.bound, largest, p,
                                                 counts, scratch);
      write_best(p, row, found, softmax, scratch);
      dev::block_barrier();
    }
  }
};

}  // namespace lapidary::cuda
