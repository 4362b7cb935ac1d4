// sampling/draw.cuh: argmax and sample: a block of threads per row. Formula and contract: ops/sampling.h.
//
//   maxima of chunks                                        all multiprocessors (ChunkMaxima, a launch before)
//   the row's maximum; greedy and infinite rows end here
//   what may be kept: with top-k what lies above the k-th largest maximum of chunks, with top-p alone what has weight enough to matter;
//   where that is few it goes into a list in shared memory, else the row is read again
//   cutoffs of top-k, then of top-p (cutoffs.cuh)
//   the pick: integer sums of chunks in order of id, then one warp over the chunk that holds it
#pragma once
#include "kernels/cuda/sampling/cutoffs.cuh"
#include "kernels/cuda/sampling/philox.cuh"
#include "ops/sampling.h"

namespace lapidary::cuda {

struct ArgmaxArguments {
  LogitTable table;
  const float* maxima;
  int32_t* tokens;
};

struct Argmax {
  using Params = ArgmaxArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static constexpr size_t kSharedBytes = 2 * kMostWarps * 4;
  LAPIDARY_DEVICE static void run(const Params& p, unsigned char* shared) {
    float* floats = reinterpret_cast<float*>(shared);
    uint32_t* ids = reinterpret_cast<uint32_t*>(floats + kMostWarps);
    const int64_t chunks = chunk_count(p.table.vocabulary);
    for (int64_t row = dev::block_index_x(); row < p.table.rows; row += dev::grid_size_x()) {
      const float* maxima = p.maxima + row * chunks;
      const float largest = row_maximum(maxima, chunks, floats);
      const int32_t token = first_of_largest(logit_row(p.table, row), maxima, largest, ids);
      if (dev::thread_index() == 0) dev::store(p.tokens + row, token);
    }
  }
};

struct SampleArguments {
  LogitTable table;
  const float* maxima;
  uint64_t* chunk_sums;    // [rows, chunks]
  uint32_t* chunk_counts;  // [rows, chunks]
  int32_t* state;
  const float* settings;  // may be null
  SampleParams defaults;
  int32_t* tokens;
  ErrorReporter errors;
};

struct Sample {
  using Params = SampleArguments;
  static constexpr int kThreads = 512, kMinBlocks = 1;
  static constexpr size_t kSharedBytes = sizeof(SearchScratch);
  enum Message : uint32_t { kSettings };

  // What survives top-k and top-p.
  struct Kept {
    bool cut;
    Cutoff cutoff;
    float min_p;
    Weigher weigher;

    // Weight of x as an integer, where its rank among those equal to the cutoff is known.
    LAPIDARY_DEVICE uint64_t amount(float x, uint64_t rank) const {
      if (!(x > -kLogitInfinity)) return 0;  // NaN too
      if (cut && (x < cutoff.x || (x == cutoff.x && rank >= cutoff.equals))) return 0;
      const float w = weigher.weight(x);
      return w < min_p ? 0 : weigher.fixed(w);
    }
  };

  // The first id, in order, at which the running sum of amounts exceeds fraction · sum.
  template <class Source>
  LAPIDARY_DEVICE static int32_t pick(const Source& source, const Kept& kept, double fraction, const Params& p,
                                      int64_t row, SearchScratch& scratch) {
    const int64_t count = source.count(), chunks = chunk_count(count);
    uint64_t* sums = p.chunk_sums + row * chunk_count(p.table.vocabulary);
    uint32_t* counts = p.chunk_counts + row * chunk_count(p.table.vocabulary);
    const bool ranked = kept.cut && kept.cutoff.equals != kAllEquals;
    const auto equals = [&](float x) { return x == kept.cutoff.x; };
    if (ranked) count_chunks(source, counts, scratch, equals);

    // Group `i` of 32 of a chunk: the lane's amount, and the equals up to there.
    const auto amount_at = [&](int64_t at, uint32_t& rank) {
      const float x = at < count ? source.x(at) : -kLogitInfinity;
      uint64_t mine = rank;
      if (ranked) {
        const uint32_t lanes = dev::warp_ballot(at < count && equals(x));
        mine += uint64_t(dev::count_ones(lanes & lanes_below()));
        rank += uint32_t(dev::count_ones(lanes));
      }
      return kept.amount(x, mine);
    };
    for (int64_t c = dev::warp_index(); c < chunks; c += kThreads / dev::kWarp) {
      uint64_t sum = 0;
      if (!source.skips(c)) {
        uint32_t rank = ranked ? dev::load(counts + c) : 0;
        for (int i = 0; i < kChunk; i += dev::kWarp) sum += amount_at(c * kChunk + i + dev::lane(), rank);
        for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
      }
      if (dev::lane() == 0) dev::store(sums + c, sum);
    }
    dev::block_barrier();
    if (dev::warp_index() != 0) return 0;

    uint64_t total = 0;
    for (int64_t c = dev::lane(); c < chunks; c += dev::kWarp) total += dev::load(sums + c);
    for (int mask = 16; mask > 0; mask /= 2) total += dev::shuffle_xor(total, mask);
    uint64_t target = uint64_t(fraction * double(total));
    if (target >= total) target = total - 1;  // rounding; at least one amount is positive
    uint64_t before = 0;
    int64_t chunk = 0;
    for (int64_t base = 0; base < chunks; base += dev::kWarp) {
      const int64_t c = base + dev::lane();
      const uint64_t up_to = before + warp_prefix(c < chunks ? dev::load(sums + c) : uint64_t(0));
      const uint32_t beyond = dev::warp_ballot(up_to > target);
      if (beyond != 0) {
        const int owner = 31 - dev::leading_zeros(beyond & (0 - beyond));
        chunk = base + owner;
        if (owner > 0) before = dev::shuffle(up_to, owner - 1);
        break;
      }
      before = dev::shuffle(up_to, dev::kWarp - 1);
    }
    uint32_t rank = ranked ? dev::load(counts + chunk) : 0;
    for (int i = 0; i < kChunk; i += dev::kWarp) {
      const int64_t at = chunk * kChunk + i + dev::lane();
      const uint64_t up_to = before + warp_prefix(amount_at(at, rank));
      const uint32_t beyond = dev::warp_ballot(up_to > target);
      if (beyond != 0) return source.id(chunk * kChunk + i + 31 - dev::leading_zeros(beyond & (0 - beyond)));
      before = dev::shuffle(up_to, dev::kWarp - 1);
    }
    return 0;
  }

  // Top-k and top-p of a source that holds everything they may keep, above `bound`; then the pick.
  template <class Source>
  LAPIDARY_DEVICE static int32_t draw_from(const Source& source, float bound, const SampleParams& settings,
                                           uint64_t top_k, Kept& kept, double fraction, const Params& p, int64_t row,
                                           SearchScratch& scratch, uint64_t total) {
    const Weigher& weigher = kept.weigher;
    kept.cut = false;
    if (top_k > 0) {
      kept.cut = true;
      kept.cutoff = top_k_cutoff(source, bound, weigher.max, top_k, scratch);
    }
    if (settings.top_p < 1) {
      uint64_t at_cutoff = 0;  // what those that equal top-k's cutoff weigh together
      float lowest = bound;
      if (kept.cut) {
        const Cutoff top = kept.cutoff;
        const bool all = top.equals == kAllEquals;
        total = 0;
        for_share(source, [&](float x) {
          if (x > top.x || (all && x == top.x)) total += weigher.fixed(weigher.weight(x));
        });
        total = block_combine(total, scratch.words, Sum());
        if (!all) at_cutoff = top.equals * weigher.fixed(weigher.weight(top.x));
        total += at_cutoff;
        lowest = top.x;
      }
      uint64_t goal = uint64_t(double(settings.top_p) * double(total));
      if (double(goal) < double(settings.top_p) * double(total)) ++goal;
      goal = goal < 1 ? 1 : goal < total ? goal : total;
      const uint64_t limit = kept.cut ? kept.cutoff.equals : kAllEquals;
      kept.cutoff = find_cutoff(source, lowest, weigher.max, goal, goal, scratch,
                                [&](float x) { return weigher.fixed(weigher.weight(x)); });
      if (kept.cut && kept.cutoff.x == lowest && limit < kept.cutoff.equals) kept.cutoff.equals = limit;
      kept.cut = true;
    }
    return pick(source, kept, fraction, p, row, scratch);
  }

  LAPIDARY_DEVICE static int32_t draw(const Params& p, int64_t row, const SampleParams& settings, float largest,
                                      double fraction, SearchScratch& scratch) {
    const int64_t chunks = chunk_count(p.table.vocabulary);
    const float* maxima = p.maxima + row * chunks;
    Kept kept = {};
    kept.min_p = settings.min_p;
    kept.weigher = make_weigher(largest, settings.temperature, p.table.vocabulary);
    RowSource source = {logit_row(p.table, row), maxima, -kLogitInfinity};
    const uint64_t top_k =
        settings.top_k >= 1 && settings.top_k < float(p.table.vocabulary) ? uint64_t(settings.top_k) : 0;
    if (top_k == 0 && settings.top_p >= 1) return pick(source, kept, fraction, p, row, scratch);

    uint64_t total = 0;
    if (top_k > 0) {
      source.bound = bound_of_top(maxima, chunks, largest, top_k, scratch);
    } else {
      for_share(source, [&](float x) {
        if (x > -kLogitInfinity) total += kept.weigher.fixed(kept.weigher.weight(x));
      });
      total = block_combine(total, scratch.words, Sum());
      // Tokens with less than (1 − topP) of the weight, shared out evenly, have less than that together. Halved once more, so that no
      // rounding lifts the bound above.
      const double share =
          (1 - double(settings.top_p)) * double(total) / double(kept.weigher.unit) / double(p.table.vocabulary);
      const int exponent = int(dev::bit_cast<uint64_t>(share) >> 52) - 1023;
      source.bound = largest + dev::div(float(exponent - 1) * 0x1.62e43p-1f, kept.weigher.inverse_temperature);
    }
    const uint64_t count = gather_few(source, p.chunk_counts + row * chunks, scratch);
    if (count > kFew) return draw_from(source, source.bound, settings, top_k, kept, fraction, p, row, scratch, total);
    return draw_from(ListSource{&scratch, int64_t(count)}, source.bound, settings, top_k, kept, fraction, p, row,
                     scratch, total);
  }

  LAPIDARY_DEVICE static bool are_valid(const SampleParams& s) {
    return s.temperature >= 0 && s.temperature < kLogitInfinity && s.top_k >= 0 && s.top_k < kLogitInfinity &&
           s.top_p >= 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p <= 1;
  }

  LAPIDARY_DEVICE static void run(const Params& p, unsigned char* shared) {
    auto& scratch = *reinterpret_cast<SearchScratch*>(shared);
    const int64_t chunks = chunk_count(p.table.vocabulary);
    for (int64_t row = dev::block_index_x(); row < p.table.rows; row += dev::grid_size_x()) {
      SampleParams settings = p.defaults;
      if (p.settings != nullptr) {
        const float* from = p.settings + 4 * row;
        settings = {dev::load(from), dev::load(from + 1), dev::load(from + 2), dev::load(from + 3)};
      }
      const uint32_t seed = uint32_t(dev::load(p.state + 2 * row)),
                     counter = uint32_t(dev::load(p.state + 2 * row + 1));
      const float largest =
          row_maximum(p.maxima + row * chunks, chunks, scratch.floats);  // a barrier behind the state's loads
      if (dev::thread_index() == 0) dev::store(p.state + 2 * row + 1, int32_t(counter + 1));
      int32_t token = 0;
      if (!are_valid(settings)) {
        if (dev::thread_index() == 0) p.errors.report(kSettings, row, p.table.rows);
      } else if (settings.temperature < 0x1p-126f || !(largest > -kLogitInfinity && largest < kLogitInfinity)) {
        token = first_of_largest(logit_row(p.table, row), p.maxima + row * chunks, largest, scratch.ids);
      } else {
        token = draw(p, row, settings, largest, random_fraction(seed, counter), scratch);
      }
      if (dev::thread_index() == 0) dev::store(p.tokens + row, token);
      dev::block_barrier();
    }
  }
};

}  // namespace lapidary::cuda
