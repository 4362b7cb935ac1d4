// amx-measure.cc: what docs/amx.md estimates and only a processor with AMX can tell. Prints cycles of the time stamp
// counter; pin it to one core and read the counter's rate from the first line. docs/amx.md says how to build and run
// it, and what each number decides.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include <initializer_list>

#include "backends/cpu/amx.h"
#include "kernels/cpu/simd/amx.h"
#include "kernels/cpu/matmul_amx.inl.h"

// The kernels' parts are used without a team.
void lapidary::team_barrier(Team&) {}
int64_t lapidary::team_claim(Team&, int, int64_t) { return 0; }
void lapidary::team_fail(Team&, Code, const char*, long long, long long) {}

namespace lapidary {
namespace {

using namespace matmul_amx;

// Least cycles of `repeats` calls.
template <class Body>
double least_cycles(int repeats, const Body& body) {
  uint64_t least = ~uint64_t(0);
  for (int i = 0; i < repeats; ++i) {
    unsigned core;
    _mm_lfence();
    const uint64_t start = __rdtscp(&core);
    body();
    const uint64_t cycles = __rdtscp(&core) - start;
    least = cycles < least ? cycles : least;
  }
  return double(least);
}

unsigned char* memory(size_t bytes) {
  void* p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  memset(p, 0, bytes);
  return static_cast<unsigned char*>(p);
}

void clock_rate() {
  timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  const uint64_t start = __rdtsc();
  do clock_gettime(CLOCK_MONOTONIC, &b);
  while ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < 100000000L);
  printf("time stamp counter: %.2f GHz; f32 vectors: ", double(__rdtsc() - start) / 1e8);
  // A chain of additions takes 4 cycles each (2 or 3 on the newest): the core's clock against the counter's.
  const double cycles = least_cycles(20, [] {
    F32 x = set1(1.f);
    for (int i = 0; i < 4000; ++i) {
      x = mul(x, set1(1.f));
      asm volatile("" : "+v"(x));
    }
  });
  printf("%.2f counts per dependent multiplication\n", cycles / 4000);
}

void products() {
  static unsigned char* const tile = memory(kTileBytes);
  const auto time = [](const TileConfig& config, bool bytes) {
    Tiles tiles(config);
    tiles.load<4>(tile, 64), tiles.load<5>(tile, 64), tiles.load<6>(tile, 64), tiles.load<7>(tile, 64);
    return least_cycles(50,
                        [&] {
                          for (int i = 0; i < 250; ++i) {
                            if (bytes) {
                              tiles.dp_s8u8<0, 4, 6>(), tiles.dp_s8u8<1, 4, 7>(), tiles.dp_s8u8<2, 5, 6>(),
                                  tiles.dp_s8u8<3, 5, 7>();
                            } else {
                              tiles.dp_bf16<0, 4, 6>(), tiles.dp_bf16<1, 4, 7>(), tiles.dp_bf16<2, 5, 6>(),
                                  tiles.dp_bf16<3, 5, 7>();
                            }
                          }
                        }) /
           1000;
  };
  printf("product: bf16 %.1f, int8 depth 64 %.1f, depth 32 %.1f, depth 16 %.1f\n", time(kFullTiles, false),
         time(kFullTiles, true), time(kDepth32Tiles, true), time(kDepth16Tiles, true));
}

// multiply_block over a band of 256 rows × 512 columns, A in L2: alone, with dequantisation between, and dequantisation
// alone.
void blocks() {
  constexpr int64_t kSteps = 16, kBlocks = 8;
  unsigned char *a = memory(kBlocks * kSteps * kStepBytes), *b = memory(2 * kSteps * kTileBytes * 2);
  float* c = reinterpret_cast<float*>(memory(kBlocks * kBlockFloats * 4));
  TensorView w;
  w.dtype = DType::q4_0;
  w.layout = Layout::panels;
  w.rank = 2;
  w.panel_rows = 16;
  w.dims[0] = 32;
  w.dims[1] = 512;
  Stretch next = {};
  next.shape = panel_shape(w);
  next.first = memory(size_t(4 * panel_bytes(w)));
  next.second = next.first + panel_bytes(w);
  next.lines = 64;
  next.out = b + 2 * kSteps * kTileBytes;
  const AdvanceFunction advance_next = advance<IntegerCodec<matmul_cpu::Format<4, ScaleScheme::pair, true>>>;
  Tiles tiles(kFullTiles);
  const auto pass = [&](bool between, int64_t blocks_of_a) {
    next.done = between ? 0 : 2 * next.lines;
    for (int64_t block = 0; block < kBlocks; ++block) {
      multiply_block<2>(tiles, a + block % blocks_of_a * kSteps * kStepBytes, b, kSteps, false,
                        c + block * kBlockFloats, next, advance_next, 2);
    }
    advance_next(next, 2 * next.lines);
  };
  const double ideal = kBlocks * kSteps * 64;
  const double l1 = least_cycles(200, [&] { pass(false, 1); }), l2 = least_cycles(200, [&] { pass(false, kBlocks); });
  const double both = least_cycles(200, [&] { pass(true, kBlocks); });
  const double alone = least_cycles(200, [&] {
    next.done = 0;
    advance_next(next, 2 * next.lines);
  });
  printf(
      "blocks of 256 x 32 x 512, %.0f cycles of products: A in L1 %.0f, A in L2 %.0f, with dequantisation %.0f, that "
      "alone %.0f\n",
      ideal, l1, l2, both, alone);
}

// A tile load of what vector stores wrote `distance` kilobytes of other stores before.
void load_after_store() {
  unsigned char* const buffer = memory(64 * kTileBytes);
  Tiles tiles(kFullTiles);
  printf("tile load after its stores, cycles by kilobytes stored since:");
  for (int distance : {0, 1, 2, 4, 8, 16, 32}) {
    const double cycles = least_cycles(200, [&] {
      for (int i = 0; i < 64; ++i) {
        for (int row = 0; row < kTileHeight; ++row)
          store_i32(reinterpret_cast<int32_t*>(buffer + i * kTileBytes + row * 64), zero_i32());
        tiles.load<4>(buffer + (i - distance + 64) % 64 * kTileBytes, 64);
        asm volatile("" : : : "memory");
      }
    });
    printf("  %d: %.0f", distance, cycles / 64);
  }
  printf("\n");
}

// Loads of K tiles as attention makes them, 16 rows a stride apart, over 256 KB.
void strided_loads() {
  constexpr size_t kSpan = 2 << 20;
  unsigned char* const keys = memory(kSpan);
  Tiles tiles(kFullTiles);
  printf("tile load by stride of its rows:");
  for (size_t stride : {64, 512, 576, 1024, 2048, 2112, 4096, 8192}) {
    const size_t across = stride / 64 < 8 ? stride / 64 : 8, tiles_high = 256 * 1024 / (16 * 64 * across);
    const double cycles = least_cycles(50, [&] {
      for (size_t high = 0; high < tiles_high; ++high) {
        for (size_t d = 0; d < across; ++d) tiles.load<4>(keys + high * 16 * stride % (kSpan / 2) + d * 64, stride);
      }
    });
    printf("  %zu: %.1f", stride, cycles / double(tiles_high * across));
  }
  printf("\n");
}

}  // namespace
}  // namespace lapidary

int main() {
  using namespace lapidary;
  const AmxReport& report = amx_report();
  if (!report.available) {
    printf("no AMX: %s\n", report.reason);
    return 77;
  }
  printf("self-test: %d holds, %d losses\n", report.holds, report.losses);
  clock_rate();
  products();
  blocks();
  load_after_store();
  strided_loads();
}
