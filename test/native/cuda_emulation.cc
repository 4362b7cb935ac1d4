// cuda_emulation.cc: what the emulation of CUDA threads must catch. Each control is a small kernel with a bug planted in it: adversarial
// schedules find it within kSeeds seeds, the right kernel passes them all, and a friendly schedule passes both, which is why it is not
// enough.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/device/device.h"
#include "kernels/cuda/device/math.h"

using lapidary::emulation::LaunchOptions;
using lapidary::emulation::Range;
using lapidary::emulation::Schedule;
namespace dev = lapidary::dev;
namespace emulation = lapidary::emulation;

namespace {

constexpr int kSeeds = 40;
int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  printf("FAILED: %s\n", what.c_str());
}

// ── a pipeline of copies: sums tiles of 32 × 4 numbers in a ring of two ─────────────────────────────────────────────
enum class Bug : uint8_t { none, wait_off_by_one, no_trailing_barrier, no_leading_barrier };

struct PipelineParams {
  const float* in;
  float* out;
  int tiles;
  Bug bug;
};

void pipeline(const void* data, unsigned char* shared) {
  const auto& p = *static_cast<const PipelineParams*>(data);
  constexpr int kTile = 128 * 4;
  auto* ring = reinterpret_cast<float*>(shared);
  const int t = dev::thread_index();
  const auto fetch = [&](int tile) {
    dev::copy_async_16(ring + tile % 2 * kTile + t * 4, p.in + tile * kTile + t * 4);
    dev::copy_async_commit();
  };
  fetch(0);
  float sum = 0;
  for (int tile = 0; tile < p.tiles; ++tile) {
    if (tile + 1 < p.tiles) {
      fetch(tile + 1);
      if (p.bug == Bug::wait_off_by_one) {
        dev::copy_async_wait<2>();
      } else {
        dev::copy_async_wait<1>();
      }
    } else {
      dev::copy_async_wait<0>();
    }
    if (p.bug != Bug::no_leading_barrier) dev::block_barrier();
    // Numbers that other threads copied.
    for (int i = 0; i < 4; ++i) sum += dev::load_shared(ring + tile % 2 * kTile + i * 128 + (t + 37) % 128);
    if (p.bug != Bug::no_trailing_barrier) dev::block_barrier();
  }
  dev::store(p.out + t, sum);
}

// "" where the sums are right, else what the emulation says or the first wrong sum.
std::string run_pipeline(Bug bug, Schedule schedule, uint64_t seed) {
  constexpr int kTiles = 6;
  std::vector<float> in(size_t(kTiles) * 512), out(128, NAN);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i * 7 % 64);
  const PipelineParams p = {in.data(), out.data(), kTiles, bug};
  LaunchOptions options;
  options.threads = 128;
  options.shared_bytes = 2 * 512 * sizeof(float);
  options.schedule = schedule;
  options.seed = seed;
  std::string error = emulation::run(options, pipeline, &p);
  for (int t = 0; t < 128 && error.empty(); ++t) {
    float expected = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int i = 0; i < 4; ++i) expected += in[size_t(tile * 512 + i * 128 + (t + 37) % 128)];
    }
    if (!(out[size_t(t)] == expected)) error = "a wrong sum";
  }
  return error;
}

// ── tickets: each block leaves a number per thread, the one that comes last adds them up ────────────────────────────
struct TicketParams {
  float* parts;
  uint32_t* counter;
  float* out;
  bool fence;
};

void tickets(const void* data, unsigned char* shared) {
  const auto& p = *static_cast<const TicketParams*>(data);
  const int t = dev::thread_index(), blocks = dev::grid_size_x();
  dev::store(p.parts + dev::block_index_x() * 64 + t, float(dev::block_index_x() + t));
  dev::block_barrier();
  auto* last = reinterpret_cast<uint32_t*>(shared);
  if (t == 0) {
    if (p.fence) dev::memory_fence();
    dev::store_shared(last, uint32_t(dev::atomic_inc(p.counter, uint32_t(blocks - 1)) == uint32_t(blocks - 1)));
  }
  dev::block_barrier();
  if (!dev::load_shared(last)) return;
  float sum = 0;
  for (int block = 0; block < blocks; ++block) sum += dev::load_volatile(p.parts + block * 64 + t);
  dev::store(p.out + t, sum);
}

std::string run_tickets(bool fence, Schedule schedule, uint64_t seed) {
  constexpr int kBlocks = 7;
  std::vector<float> parts(kBlocks * 64, NAN), out(64, NAN);
  uint32_t counter = 0;
  const TicketParams p = {parts.data(), &counter, out.data(), fence};
  LaunchOptions options;
  options.grid.x = kBlocks;
  options.threads = 64;
  options.shared_bytes = 16;
  options.schedule = schedule;
  options.seed = seed;
  std::string error = emulation::run(options, tickets, &p);
  if (error.empty() && counter != 0) error = "the counter is not back at 0";
  for (int t = 0; t < 64 && error.empty(); ++t) {
    if (!(out[size_t(t)] == float(kBlocks * (kBlocks - 1) / 2 + kBlocks * t))) error = "a wrong sum";
  }
  return error;
}

// ── a lock that blocks pass on in order ─────────────────────────────────────────────────────────────────────────────
void in_turn(const void* data, unsigned char*) {
  const auto& p = *static_cast<const TicketParams*>(data);
  if (dev::thread_index() == 0) {
    while (dev::load_volatile(p.counter) != uint32_t(dev::block_index_x())) {
    }
    dev::store(p.out, dev::load_volatile(p.out) * 3 + 1);
    dev::memory_fence();
    dev::atomic_add(p.counter, 1u);
  }
  dev::warp_barrier();
}

// ── violations that the emulation names itself ──────────────────────────────────────────────────────────────────────
struct Slip {
  const char* name;
  emulation::Body body;
  const char* expected;  // in the text
};

float global_numbers[64];

const Slip kSlips[] = {
    {"read past the end", [](const void*, unsigned char*) { dev::load(global_numbers + 64); }, "outside"},
    {"write past the end", [](const void*, unsigned char*) { dev::store(global_numbers + 64, 1.0f); }, "outside"},
    {"write into an input", [](const void*, unsigned char*) { dev::store(global_numbers, 1.0f); }, "read-only"},
    {"copy past the end", [](const void*, unsigned char* shared) { dev::copy_async_16(shared, global_numbers + 61); },
     "misaligned"},
    {"copy of what is not there",
     [](const void*, unsigned char* shared) { dev::copy_async_16(shared, global_numbers + 64); }, "outside"},
    {"shared memory past the end",
     [](const void*, unsigned char* shared) { dev::store_shared(reinterpret_cast<float*>(shared) + 256, 1.0f); },
     "outside shared memory"},
    {"shared memory past the end, by a plain pointer", [](const void*, unsigned char* shared) { shared[1024] = 0; },
     "outside the block's"},
    {"ldmatrix of a misaligned row",
     [](const void*, unsigned char* shared) {
       uint32_t r[4];
       dev::ldmatrix_x4(r, shared + dev::lane() * 16 + 8);
     },
     "misaligned"},
    {"a 16-byte load of a misaligned address",
     [](const void*, unsigned char*) { dev::load_stream_16(global_numbers + 1); }, "misaligned"},
    {"half a warp at a shuffle",
     [](const void*, unsigned char*) {
       if (dev::lane() < 16) dev::shuffle_xor(1.0f, 1);
     },
     "deadlock"},
    {"two halves at different operations",
     [](const void*, unsigned char*) {
       if (dev::lane() < 16) {
         dev::shuffle_xor(1.0f, 1);
       } else {
         dev::warp_ballot(true);
       }
     },
     "divergence"},
    {"a barrier that one warp leaves out",
     [](const void*, unsigned char*) {
       if (dev::warp_index() == 0) dev::block_barrier();
     },
     "deadlock"},
    {"waiting for nobody",
     [](const void*, unsigned char*) {
       while (dev::load_volatile(global_numbers) == 0) {
       }
     },
     "no progress"},
};

void test_slips() {
  const auto* begin = reinterpret_cast<const unsigned char*>(global_numbers);
  const std::vector<Range> ranges = {{begin, begin + sizeof global_numbers, false}};
  for (const Slip& slip : kSlips) {
    LaunchOptions options;
    options.threads = 64;
    options.shared_bytes = 1024;
    options.ranges = &ranges;
    const std::string error = emulation::run(options, slip.body, nullptr);
    expect(error.find(slip.expected) != std::string::npos,
           std::string(slip.name) + ": expected '" + slip.expected + "', got '" + error + "'");
  }
}

// ── operations against their definitions ────────────────────────────────────────────────────────────────────────────
struct MatrixParams {
  const uint16_t* a;  // bf16 [16, 16]
  const uint16_t* b;  // bf16 [16, 8], stored [8, 16]
  float* d;           // [16, 8]
};

void multiply(const void* data, unsigned char* shared) {
  const auto& p = *static_cast<const MatrixParams*>(data);
  auto* a = reinterpret_cast<uint16_t*>(shared);
  auto* b = a + 256;
  const int l = dev::lane();
  for (int i = l; i < 256; i += 32) a[i] = p.a[i];
  for (int i = l; i < 128; i += 32) b[i] = p.b[i];
  dev::warp_barrier();
  uint32_t fragment_a[4], fragment_b[2];
  dev::ldmatrix_x4(fragment_a, a + l % 16 * 16 + l / 16 * 8);
  dev::ldmatrix_x2(fragment_b, b + l % 8 * 16 + l / 8 % 2 * 8);
  float d[4] = {};
  dev::mma_bf16(d, fragment_a, fragment_b[0], fragment_b[1]);
  for (int r = 0; r < 4; ++r) dev::store(p.d + (l / 4 + r / 2 * 8) * 8 + l % 4 * 2 + r % 2, d[r]);
}

void test_multiply() {
  uint16_t a[256], b[128];
  float d[128];
  for (int i = 0; i < 256; ++i) a[i] = dev::to_bf16(float(i * 5 % 17 - 8)).bits;
  for (int i = 0; i < 128; ++i) b[i] = dev::to_bf16(float(i * 3 % 13 - 6)).bits;
  const MatrixParams p = {a, b, d};
  LaunchOptions options;
  options.shared_bytes = 384 * sizeof(uint16_t);
  const uint64_t before = emulation::counts().bank_conflicts;
  expect(emulation::run(options, multiply, &p).empty(), "a product of a warp");
  bool right = true;
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float sum = 0;
      for (int k = 0; k < 16; ++k)
        sum += dev::to_float(dev::Bf16{a[m * 16 + k]}) * dev::to_float(dev::Bf16{b[n * 16 + k]});
      right = right && d[m * 8 + n] == sum;
    }
  }
  expect(right, "mma_bf16 of fragments that ldmatrix loaded");
  // Rows of 32 bytes: two of eight meet in each group of banks, in all six matrices.
  expect(emulation::counts().bank_conflicts - before == 6, "bank conflicts of rows of 32 bytes are counted");
}

// ── conflicts on the banks of shared memory ─────────────────────────────────────────────────────────────────────────
// Each lane of a warp goes through kSteps numbers, `stride` words from lane to lane.
template <class T>
void walk(const void* data, unsigned char* shared) {
  const int stride = *static_cast<const int*>(data);
  constexpr int kSteps = 3;
  auto* at = reinterpret_cast<T*>(shared);
  for (int i = 0; i < kSteps; ++i) dev::store_shared(at + dev::lane() * stride + i, T{});
  dev::warp_barrier();
  for (int i = 0; i < kSteps; ++i) dev::load_shared(at + dev::lane() * stride + i);
}

// Cycles beyond the least of the six accesses of a walk.
template <class T>
uint64_t conflicts_of(int stride, bool count = true, uint64_t seed = 1) {
  LaunchOptions options;
  options.shared_bytes = 32 * 33 * sizeof(T) + 64;
  options.count_banks = count;
  options.seed = seed;
  const emulation::Counts before = emulation::counts();
  const std::string error = emulation::run(options, walk<T>, &stride);
  expect(error.empty(), "a walk through shared memory: " + error);
  const emulation::Counts after = emulation::counts();
  expect(after.shared_accesses - before.shared_accesses == (count ? 6 : 0), "each access of a warp is counted once");
  return after.shared_conflicts - before.shared_conflicts;
}

void test_banks() {
  expect(conflicts_of<uint32_t>(1) == 0, "neighbours meet no bank twice");
  expect(conflicts_of<uint32_t>(0) == 0, "one word for all is no conflict");
  expect(conflicts_of<uint32_t>(32) == 6 * 31, "a column of 32 words: a planted conflict of 32 lanes");
  expect(conflicts_of<uint32_t>(33) == 0, "a column of 33 words");
  expect(conflicts_of<uint32_t>(2) == 6, "every other word");
  expect(conflicts_of<uint8_t>(1) == 0 && conflicts_of<uint16_t>(1) == 0, "narrow numbers share words");
  expect(conflicts_of<uint64_t>(1) == 0 && conflicts_of<uint64_t>(2) == 6 * 2, "8 bytes, by halves of a warp");
  expect(conflicts_of<dev::Words4>(1) == 0 && conflicts_of<dev::Words4>(2) == 6 * 4, "16 bytes, by quarters");
  for (uint64_t seed = 2; seed < 10; ++seed)
    expect(conflicts_of<uint32_t>(32, true, seed) == 6 * 31, "whatever the schedule is");
  expect(conflicts_of<uint32_t>(32, false) == 0, "nothing is counted that was not asked for");
}

void test_numbers() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = dev::to_float(dev::F16{uint16_t(bits)});
    const bool same = dev::to_f16(x).bits == bits || (x != x && (bits & 0x7fff) > 0x7c00);
    if (!same) return expect(false, "f16 " + std::to_string(bits) + " there and back");
  }
  expect(dev::to_f16(1 + 0x1p-11f).bits == 0x3c00 && dev::to_f16(1 + 0x3p-11f).bits == 0x3c02, "f16 ties go to even");
  expect(dev::to_f16(65519.99f).bits == 0x7bff && dev::to_f16(65520.0f).bits == 0x7c00, "f16 overflow");
  expect(dev::to_bf16(1 + 0x1p-8f).bits == 0x3f80 && dev::to_bf16(1 + 0x3p-8f).bits == 0x3f82, "bf16 ties go to even");
  expect(dev::byte_permute(0x33221100, 0x77665544, 0x7531) == 0x77553311, "byte_permute");
  expect(dev::lop3<0xea>(0xf0, 0xcc, 0xaa) == ((0xf0 & 0xcc) | 0xaa), "lop3: (a & b) | c");
  expect(dev::dot4_i8(0x80017f02, 0x02ff0301, 5) == 5 - 256 - 1 + 381 + 2, "dot4_i8");
  // The approximations err, but no more than they may.
  double worst[2] = {};
  for (int i = 1; i < 20000; ++i) {
    const float x = float(i) * 1e-3f - 10;
    worst[0] = std::fmax(worst[0], std::fabs(dev::exp2_approx(x) / std::exp2(double(x)) - 1));
    if (x != 0) worst[1] = std::fmax(worst[1], std::fabs(dev::tanh_approx(x) / std::tanh(double(x)) - 1));
  }
  expect(worst[0] > 0x1p-23 && worst[0] <= 0x1.5p-22, "exp2_approx");
  expect(worst[1] > 0x1p-12 && worst[1] <= 0x1.1p-11, "tanh_approx");
}

void test_functions() {
  double worst[4] = {};
  for (int i = 0; i < 400000; ++i) {
    const float x = float(i) * 4e-4f - 80;
    const double exact[] = {std::exp2(double(x)), std::exp(double(x)), std::tanh(double(x)), 0};
    const float got[] = {dev::exp2(x), dev::exp(x), dev::tanh(x), 0};
    for (int f = 0; f < 3; ++f) {
      if (exact[f] != 0) worst[f] = std::fmax(worst[f], std::fabs(got[f] / exact[f] - 1) / 0x1p-24);
    }
  }
  // An ulp is at most 2 units of 2^-24.
  expect(worst[0] <= 2 * 0.95 && worst[1] <= 2 * 1.01 && worst[2] <= 2 * 2.61, "exp2, exp, tanh");
  expect(std::isnan(dev::tanh(NAN)) && std::isnan(dev::exp2(NAN)) && std::isnan(dev::gelu_tanh(NAN)), "NaN stays");
}

}  // namespace

int main() {
  int found[4] = {};
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const std::string error = run_pipeline(Bug::none, Schedule::adversarial, seed);
    expect(error.empty(), "the right pipeline: " + error);
    for (const Bug bug : {Bug::wait_off_by_one, Bug::no_trailing_barrier, Bug::no_leading_barrier})
      found[int(bug)] += !run_pipeline(bug, Schedule::adversarial, seed).empty();
  }
  expect(found[int(Bug::wait_off_by_one)] == kSeeds, "a wait_group off by one is caught on every schedule");
  expect(found[int(Bug::no_trailing_barrier)] > 0, "a missing trailing barrier is caught");
  expect(found[int(Bug::no_leading_barrier)] > 0, "a missing barrier after the wait is caught");
  for (const Bug bug : {Bug::none, Bug::wait_off_by_one, Bug::no_trailing_barrier})
    expect(run_pipeline(bug, Schedule::friendly, 1).empty(), "a friendly schedule sees nothing wrong");

  int fenceless = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const std::string error = run_tickets(true, Schedule::adversarial, seed);
    expect(error.empty(), "tickets: " + error);
    fenceless += !run_tickets(false, Schedule::adversarial, seed).empty();
  }
  expect(fenceless > kSeeds / 4, "a missing fence before a ticket is caught");
  expect(run_tickets(false, Schedule::friendly, 1).empty(), "a friendly schedule misses the missing fence");

  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    float out = 0;
    uint32_t turn = 0;
    const TicketParams p = {nullptr, &turn, &out, true};
    LaunchOptions options;
    options.grid.x = 5;
    options.seed = seed;
    const std::string error = emulation::run(options, in_turn, &p);
    expect(error.empty() && out == 121, "a lock that blocks pass on: " + error);
  }
  test_slips();
  test_multiply();
  test_banks();
  test_numbers();
  test_functions();
  const emulation::Counts counts = emulation::counts();
  printf("%llu launches, %llu switches; caught of %d schedules: trailing barrier %d, leading barrier %d, fence %d\n",
         static_cast<unsigned long long>(counts.launches), static_cast<unsigned long long>(counts.switches), kSeeds,
         found[int(Bug::no_trailing_barrier)], found[int(Bug::no_leading_barrier)], fenceless);
  return failures ? 1 : 0;
}
