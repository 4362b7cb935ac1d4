// cuda_attention.cc: the tiles of flash attention over the emulation of CUDA threads: right on every schedule, free of bank conflicts, and
// with a bug planted (a missing barrier, a wait for one copy too few, a missing fence) found out. The op's cases run in the test suites.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/flash_attention.cuh"

using namespace lapidary::cuda::attention;
using lapidary::emulation::LaunchOptions;
using lapidary::emulation::Schedule;
namespace dev = lapidary::dev;
namespace emulation = lapidary::emulation;

namespace {

constexpr int kSeeds = 12;
int failures = 0;
bool count_banks = false;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s\n", what.c_str());
}

// One sequence of two query heads over one kv head, causal, with a window; bf16.
struct Attention {
  int tokens, keys, head_dim, window;
  std::vector<uint16_t> q, k, v;
  std::vector<float> out;
  std::vector<float> partials;
  uint32_t tickets[4] = {};
  lapidary::cuda::ErrorRecord record = {};

  Attention(int tokens, int keys, int head_dim, int window)
      : tokens(tokens), keys(keys), head_dim(head_dim), window(window) {
    uint32_t state = 7;
    const auto fill = [&](std::vector<uint16_t>& to, int count) {
      for (int i = 0; i < count; ++i) {
        state = state * 1664525u + 1013904223u;
        to.push_back(dev::to_bf16(float(state >> 8) * 0x1p-22f - 2).bits);
      }
    };
    fill(q, 2 * tokens * head_dim);
    fill(k, keys * head_dim);
    fill(v, keys * head_dim);
    partials.assign(size_t(2 * tokens * kMostChunks * partial_stride(head_dim)), NAN);
  }

  Problem problem() {
    Problem p = {};
    p.q = reinterpret_cast<const unsigned char*>(q.data());
    p.k = reinterpret_cast<const unsigned char*>(k.data());
    p.v = reinterpret_cast<const unsigned char*>(v.data());
    p.out = reinterpret_cast<unsigned char*>(out.data());
    p.q_token = 2 * head_dim;
    p.q_head = p.k_head = p.k_slot = p.v_head = p.v_slot = head_dim;
    p.tokens = tokens;
    p.query_heads = p.group = 2;
    p.kv_heads = p.sequences = p.page_tokens = 1;
    p.head_dim = head_dim;
    p.keys = keys;
    p.window = window;
    p.factor = float(1.4426950408889634 / std::sqrt(double(head_dim)));
    p.causal = p.out_f32 = p.by_token = true;
    p.q_aligned = p.kv_aligned = head_dim % 8 == 0;
    p.partials = partials.data();
    p.tickets = tickets;
    p.most_chunks = kMostChunks;
    p.errors = {&record, 0};
    return p;
  }

  // The largest error relative to the norm of a row; NaN counts as 1.
  double error() const {
    const auto at = [](const std::vector<uint16_t>& x, int i) {
      return double(dev::to_float(dev::Bf16{x[size_t(i)]}));
    };
    double worst = 0;
    for (int row = 0; row < 2 * tokens; ++row) {
      const int end = keys - tokens + row / 2 + 1, begin = window > 0 && end > window ? end - window : 0;
      std::vector<double> sum(size_t(head_dim), 0.0);
      double total = 0;
      for (int key = begin; key < end; ++key) {
        double score = 0;
        for (int d = 0; d < head_dim; ++d) score += at(q, row * head_dim + d) * at(k, key * head_dim + d);
        const double weight = std::exp(score / std::sqrt(double(head_dim)));
        total += weight;
        for (int d = 0; d < head_dim; ++d) sum[size_t(d)] += weight * at(v, key * head_dim + d);
      }
      double difference = 0, norm = 0;
      for (int d = 0; d < head_dim; ++d) {
        const double exact = sum[size_t(d)] / total, got = double(out[size_t(row * head_dim + d)]);
        difference += (got - exact) * (got - exact);
        norm += exact * exact;
      }
      const double relative = std::sqrt(difference / norm);
      worst = relative <= worst ? worst : std::isnan(relative) ? 1 : relative;
    }
    return worst;
  }
};

template <class Kernel>
std::string run(Attention& attention, const typename Kernel::Params& params, size_t shared, int blocks, uint64_t seed,
                Schedule schedule) {
  LaunchOptions options;
  options.grid.x = blocks;
  options.threads = Kernel::kThreads;
  options.shared_bytes = shared;
  options.seed = seed;
  options.schedule = schedule;
  options.count_banks = count_banks;
  const auto body = [](const void* data, unsigned char* memory) {
    Kernel::run(*static_cast<const typename Kernel::Params*>(data), memory);
  };
  std::string error = emulation::run(options, body, &params);
  // bf16 weights and values: 2⁻⁸ each, of which rows average some.
  if (error.empty() && !(attention.error() < 0x1p-7)) error = "a wrong row";
  return error;
}

template <class Size>
std::string prefill(Attention& attention, uint64_t seed, Schedule schedule) {
  using Tile = MmaTile<Size>;
  attention.out.assign(size_t(2 * attention.tokens * attention.head_dim), NAN);
  const int64_t blocks = 2 * attention.tokens / Tile::kRows + 1;
  return run<Prefill<Tile>>(attention, {attention.problem(), blocks}, sizeof(typename Tile::Shared), int(blocks), seed,
                            schedule);
}

template <class Size>
std::string decode(Attention& attention, uint64_t seed, Schedule schedule) {
  using Tile = MmaTile<Size>;
  attention.out.assign(size_t(2 * attention.tokens * attention.head_dim), NAN);
  std::string error =
      run<Decode<Tile>>(attention, {attention.problem(), 0, 1}, sizeof(typename Tile::Shared), 5, seed, schedule);
  if (error.empty() && attention.tickets[0] != 0) error = "the ticket is not back at 0";
  attention.tickets[0] = 0;
  return error;
}

// What a kernel's ordinary accesses to shared memory cost, as a report.
void report_banks(const std::string& kernel, const emulation::Counts& before) {
  const emulation::Counts after = emulation::counts();
  printf("  %-14s %6llu accesses of warps to shared memory, %llu cycles of conflicts\n", kernel.c_str(),
         static_cast<unsigned long long>(after.shared_accesses - before.shared_accesses),
         static_cast<unsigned long long>(after.shared_conflicts - before.shared_conflicts));
}

// The right kernel on every seed; no bank conflicts.
template <int kD>
void test_dimension() {
  Attention rows(45, 130, kD, 70);
  count_banks = true;
  const emulation::Counts start = emulation::counts();
  const uint64_t before = start.bank_conflicts;
  const std::string text = std::to_string(kD);
  std::string error = prefill<PrefillSize<kD, false>>(rows, 3, Schedule::adversarial);
  expect(error.empty(), "prefill of " + text + ": " + error);
  report_banks("prefill d" + text, start);
  if constexpr (kD != 80 && kD != 96) {
    Attention few(2, 300, kD, 0);
    const emulation::Counts middle = emulation::counts();
    error = decode<DecodeSize<kD, false>>(few, 3, Schedule::adversarial);
    expect(error.empty(), "decode of " + text + ": " + error);
    report_banks("decode d" + text, middle);
  }
  expect(emulation::counts().bank_conflicts == before, "ldmatrix meets no bank twice, heads of " + text);
  count_banks = false;
}

template <Defect kDefect>
using OwnRows = MmaTileSize<64, 1, 4, 1, 64, false, kDefect>;
template <Defect kDefect>
using SharedRows = MmaTileSize<64, 1, 1, 4, 64, false, kDefect>;

// How many seeds find the bug, of a prefill and of a decode.
template <Defect kDefect>
void count_found(int (&found)[2], Schedule schedule = Schedule::adversarial, int seeds = kSeeds) {
  Attention rows(40, 300, 64, 0), few(2, 700, 64, 0);
  for (int seed = 1; seed <= seeds; ++seed) {
    found[0] += !prefill<OwnRows<kDefect>>(rows, uint64_t(seed), schedule).empty();
    found[1] += !decode<SharedRows<kDefect>>(few, uint64_t(seed), schedule).empty();
  }
}

}  // namespace

int main() {
  test_dimension<64>();
  test_dimension<80>();
  test_dimension<96>();
  test_dimension<128>();
  test_dimension<256>();
  test_dimension<512>();

  int none[2] = {}, barrier[2] = {}, early[2] = {}, fence[2] = {};
  count_found<Defect::none>(none);
  expect(none[0] == 0 && none[1] == 0, "the right kernels, on every schedule");
  count_found<Defect::missing_barrier>(barrier);
  expect(barrier[0] > 0 && barrier[1] > 0, "a missing barrier is caught");
  count_found<Defect::early_read>(early);
  expect(early[0] == kSeeds && early[1] == kSeeds, "a wait for one copy too few is caught on every schedule");
  count_found<Defect::missing_fence>(fence, Schedule::adversarial, 4 * kSeeds);
  expect(fence[0] == 0 && fence[1] > 0, "a missing fence before the ticket is caught");
  int friendly[2] = {};
  count_found<Defect::early_read>(friendly, Schedule::friendly, 1);
  count_found<Defect::missing_fence>(friendly, Schedule::friendly, 1);
  expect(friendly[0] == 0 && friendly[1] == 0, "a friendly schedule sees nothing wrong");
  printf("caught of %d schedules: barrier %d and %d, wait %d and %d, fence %d of %d\n", kSeeds, barrier[0], barrier[1],
         early[0], early[1], fence[1], 4 * kSeeds);
  return failures ? 1 : 0;
}
