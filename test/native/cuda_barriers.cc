// cuda_barriers.cc: every barrier, wait and fence of the CUDA kernels of matmul and refine_logits is there for a reason: without it,
// adversarial schedules of the emulation find a wrong result or a hazard within kSeeds seeds. The kernels with all of them give the same
// bits on every schedule. What the results should be is tested elsewhere (test/ops): here a friendly schedule's are right.
//
// The kernels are compiled over a device layer whose synchronisation can be left out by the line that asks for it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/device/device.h"

namespace lapidary::dev {

// "file:line" → what stands there. `planted` is the place of the bug.
inline std::map<std::string, std::string> places;
inline std::string planted;

inline bool is_planted(const char* what, const char* file, int line) {
  const char* name = strrchr(file, '/');
  const std::string place = std::string(name ? name + 1 : file) + ":" + std::to_string(line);
  places.emplace(place, what);
  return place == planted;
}
inline void counted_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!is_planted("block_barrier", file, line)) block_barrier();
}
inline void counted_fence(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!is_planted("memory_fence", file, line)) memory_fence();
}
// Planted: one group too many may still be on its way.
template <int kOpen>
inline void counted_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (is_planted("copy_async_wait", file, line))
    copy_async_wait<kOpen + 1>();
  else
    copy_async_wait<kOpen>();
}
}  // namespace lapidary::dev

#define block_barrier counted_barrier
#define memory_fence counted_fence
#define copy_async_wait counted_wait
#include "kernels/cuda/matmul/decode.cuh"
#include "kernels/cuda/matmul/tensor_core.cuh"
#include "kernels/cuda/refine_logits.cuh"
#undef block_barrier
#undef memory_fence
#undef copy_async_wait

namespace {

using namespace lapidary;
using namespace lapidary::cuda;
using namespace lapidary::cuda::matmul;
using emulation::LaunchOptions;
using emulation::Schedule;

constexpr int kSeeds = 300, kSoundSeeds = 20;
int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s\n", what.c_str());
}

uint32_t random_word(uint64_t& state) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return uint32_t(state >> 33);
}

// A packed q4_0 matrix of random codes, whose scales lie between 1 and 2, and random x.
struct Problem {
  std::vector<uint32_t> weights;
  std::vector<float> x;
  std::vector<uint16_t> rounded;
  TensorView w;

  Problem(int64_t outputs, int64_t columns, int64_t rows) {
    w.dtype = DType::q4_0;
    w.layout = Layout::panels;
    w.rank = 2;
    w.panel_rows = kPanelRows;
    w.dims[0] = outputs;
    w.dims[1] = columns;
    uint64_t state = 1;
    weights.resize(size_t(panel_bytes(w) * panel_count(w)) / 4);
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool scales = i % 144 < 16;  // of a record's 576 bytes
      weights[i] =
          scales ? 0x3c003c00u | (random_word(state) & 0x03ff03ffu) : random_word(state) << 16 ^ random_word(state);
    }
    w.data = reinterpret_cast<unsigned char*>(weights.data());
    for (int64_t i = 0; i < rows * columns; ++i) {
      x.push_back(float(int(random_word(state) % 2001) - 1000) / 512);
      rounded.push_back(dev::to_bf16(x.back()).bits);
    }
  }
};

// A kernel on the problem: its outputs, or what the emulation found.
using Run = std::string (*)(const Problem& problem, const LaunchOptions& options, std::vector<float>& out);

template <class K>
std::string run(LaunchOptions options, const typename K::Params& params, size_t shared_bytes) {
  options.threads = K::kThreads;
  options.shared_bytes = shared_bytes;
  const auto body = [](const void* data, unsigned char* shared) {
    K::run(*static_cast<const typename K::Params*>(data), shared);
  };
  return emulation::run(options, body, &params);
}

template <class Params>
Params common(const Problem& problem, int splits, std::vector<float>& out, std::vector<float>& partial,
              std::vector<uint32_t>& tickets) {
  Params p = {};
  p.w = describe_panels(problem.w);
  p.pairs = (p.w.panels + 1) / 2;
  const int64_t rows = int64_t(problem.x.size()) / problem.w.dims[1];
  out.assign(size_t(rows * problem.w.dims[0]), NAN);
  partial.assign(size_t(splits * rows * p.pairs * 32), NAN);
  tickets.assign(64, 0);
  p.out.data = reinterpret_cast<unsigned char*>(out.data());
  p.out.columns = problem.w.dims[0];
  p.splits = {splits, partial.data(), tickets.data()};
  return p;
}

// Two chunks of K, two warps per pair, two blocks per pair.
std::string run_decode(const Problem& problem, const LaunchOptions& given, std::vector<float>& out) {
  using K = Decode<Codes<4, ScaleScheme::pair>, 2>;
  std::vector<float> partial;
  std::vector<uint32_t> tickets;
  auto p = common<DecodeParams>(problem, 2, out, partial, tickets);
  p.x = {
      reinterpret_cast<const unsigned char*>(problem.x.data()), 2, problem.w.dims[1], problem.w.dims[1], false, false};
  p.parts = 4;
  p.chunk_records = 4;
  LaunchOptions options = given;
  options.grid = {int(divide_up(p.pairs, kDecodeWarps / p.parts)), 2, 1};
  return run<K>(options, p, K::shared_bytes(p));
}

// Five stages for each of two blocks, which is more than the ring has.
std::string run_tensor_core(const Problem& problem, const LaunchOptions& given, std::vector<float>& out) {
  using K = TensorCore<Codes<4, ScaleScheme::pair>, 2>;
  std::vector<float> partial;
  std::vector<uint32_t> tickets;
  auto p = common<TensorParams>(problem, 2, out, partial, tickets);
  p.x = reinterpret_cast<const unsigned char*>(problem.rounded.data());
  p.x_stride = p.columns = problem.w.dims[1];
  p.rows = int64_t(problem.x.size()) / problem.w.dims[1];
  LaunchOptions options = given;
  options.grid = {int(divide_up(p.pairs, kTensorWarps)), 1, 2};
  return run<K>(options, p, K::kSharedBytes);
}

// x as one row of logits: three pieces of the block's threads, whose five largest are listed.
std::string run_find_top(const Problem& problem, const LaunchOptions& given, std::vector<float>& out) {
  constexpr int kTop = 5;
  std::vector<float> logits = problem.x;
  std::vector<int32_t> ids(logits.size(), -1);
  int32_t count = -1;
  RefineArguments p = {};
  p.logits = logits.data();
  p.rows = 1;
  p.vocabulary = int64_t(logits.size());
  p.top = kTop;
  p.ids = ids.data();
  p.counts = &count;
  // A planted bug makes indices of anything: they must not leave the emulation.
  const auto range = [](auto* data, size_t count, bool writable) {
    const auto* begin = reinterpret_cast<const unsigned char*>(data);
    return emulation::Range{begin, begin + count * sizeof *data, writable};
  };
  const std::vector<emulation::Range> ranges = {range(logits.data(), logits.size(), false),
                                                range(ids.data(), ids.size(), true), range(&count, 1, true)};
  LaunchOptions options = given;
  options.ranges = &ranges;
  const std::string error = run<FindTop>(options, p, sizeof(FindTop::Shared));
  out.assign(ids.begin(), ids.begin() + kTop);
  out.push_back(float(count));
  return error;
}

void test(const char* name, Run run, const Problem& problem) {
  dev::places.clear();
  dev::planted.clear();
  std::vector<float> expected, out;
  LaunchOptions options;
  options.schedule = Schedule::friendly;
  options.count_banks = true;
  const emulation::Counts before = emulation::counts();
  const std::string friendly = run(problem, options, expected);
  expect(friendly.empty(), std::string(name) + ", friendly: " + friendly);
  const emulation::Counts after = emulation::counts();
  printf("%s: %llu accesses of warps to shared memory, %llu cycles of conflicts; ldmatrix %llu\n", name,
         static_cast<unsigned long long>(after.shared_accesses - before.shared_accesses),
         static_cast<unsigned long long>(after.shared_conflicts - before.shared_conflicts),
         static_cast<unsigned long long>(after.bank_conflicts - before.bank_conflicts));
  options.count_banks = false;
  const auto same = [&] { return memcmp(out.data(), expected.data(), expected.size() * sizeof(float)) == 0; };
  options.schedule = Schedule::adversarial;
  for (options.seed = 1; options.seed <= kSoundSeeds; ++options.seed) {
    const std::string error = run(problem, options, out);
    expect(error.empty(), std::string(name) + ": " + error);
    expect(same(), std::string(name) + ": other bits on schedule " + std::to_string(options.seed));
  }
  const auto places = dev::places;
  std::map<std::string, int> fences;  // of a file
  expect(places.size() >= 5, std::string(name) + ": expected several places that synchronise");
  for (const auto& [place, what] : places) {
    dev::planted = place;
    bool caught = false;
    for (options.seed = 1; options.seed <= kSeeds && !caught; ++options.seed) {
      const std::string error = run(problem, options, out);
      caught = !error.empty() || !same();
    }
    // The emulation's atomics order reads as well as writes, which the hardware's do not.
    const bool beyond = what == "memory_fence" && ++fences[place.substr(0, place.find(':'))] == 2;
    printf("%s without %s of %s: %s\n", name, what.c_str(), place.c_str(),
           caught   ? "caught"
           : beyond ? "the emulation cannot tell"
                    : "not caught");
    expect(caught || beyond, std::string(name) + ": nothing notices that " + place + " lacks its " + what);
  }
}

}  // namespace

int main() {
  test("decode", run_decode, Problem(96, 16 * 64, 2));
  test("tensor_core", run_tensor_core, Problem(96, 10 * 64, 11));
  test("find_top", run_find_top, Problem(16, 1280, 2));
  return failures ? 1 : 0;
}
