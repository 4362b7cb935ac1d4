// tiles.cc: the tile vocabulary: the emulation against the manual, and the instructions against the emulation.
//
// The instructions run on the processor where it has AMX, and by test/native/amx_trap.h where it has not; the report
// says which. Build with amx_stores.cc and backends/cpu/amx.cc.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

#include "amx_trap.h"
#include "backends/cpu/amx.h"

// Both back ends call themselves Tiles; here they must live side by side.
#define Tiles AmxTiles
#include "kernels/cpu/simd/tiles_amx.h"
#undef Tiles
#define Tiles EmulatedTiles
#include "kernels/cpu/simd/tiles_emulated.h"
#undef Tiles

extern "C" void fill_and_load(const unsigned char* from, unsigned char* out);
extern "C" void configure_on_stack(int rows, unsigned char* out);

namespace lapidary {
namespace {

int failures = 0;
void expect(bool holds, const char* what) {
  if (!holds) {
    ++failures;
    printf("FAILED: %s\n", what);
  }
}

uint64_t seed = 1;
uint32_t random_bits() {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(seed >> 32);
}

struct alignas(64) Matrices {
  unsigned char a[2][simd::kTileBytes], b[2][simd::kTileBytes], c[4][16 * 80];
};

// `awkward`: all bit patterns, so NaNs, infinities and subnormals; else bf16 values between 2⁻⁸ and 2⁸, with subnormal
// products.
void fill(Matrices& m, bool awkward) {
  for (auto* part : {&m.a[0][0], &m.b[0][0]}) {
    for (int i = 0; i < 2 * simd::kTileBytes; i += 2) {
      uint16_t bits = uint16_t(random_bits());
      if (!awkward) bits = uint16_t((bits & 0x807f) | ((119 + random_bits() % 16) << 7));
      if (!awkward && random_bits() % 16 == 0) bits = uint16_t((bits & 0x807f) | ((random_bits() % 70) << 7));
      memcpy(part + i, &bits, 2);
    }
  }
  for (auto& c : m.c) {
    for (int i = 0; i < int(sizeof c); i += 4) {
      const float value = float(int32_t(random_bits())) * 0x1p-28f;
      memcpy(c + i, &value, 4);
    }
  }
}

// The 2 × 2 block of the matmul kernel. C rows lie 80 bytes apart.
template <class Tiles>
void block_bf16(Matrices& m) {
  Tiles tiles(simd::kFullTiles);
  tiles.template load<0>(m.c[0], 80);
  tiles.template load<1>(m.c[1], 80);
  tiles.template load<2>(m.c[2], 80);
  tiles.template zero<3>();
  tiles.template load<4>(m.a[0], 64);
  tiles.template load<5>(m.a[1], 64);
  tiles.template load<6>(m.b[0], 64);
  tiles.template load<7>(m.b[1], 64);
  for (int repeat = 0; repeat < 2; ++repeat) {
    tiles.template dp_bf16<0, 4, 6>();
    tiles.template dp_bf16<1, 4, 7>();
    tiles.template dp_bf16<2, 5, 6>();
    tiles.template dp_bf16<3, 5, 7>();
  }
  tiles.template store<0>(m.c[0], 80);
  tiles.template store<1>(m.c[1], 80);
  tiles.template store<2>(m.c[2], 80);
  tiles.template store<3>(m.c[3], 80);
  tiles.expire();
}

template <class Tiles>
void block_s8u8(Matrices& m, const simd::TileConfig& config) {
  Tiles tiles(config);
  tiles.template load<0>(m.c[0], 80);
  tiles.template zero<1>();
  tiles.template load<4>(m.a[0], 64);
  tiles.template load<5>(m.a[1], 48);
  tiles.template load<6>(m.b[0], 64);
  tiles.template load<7>(m.b[1], 64);
  tiles.template dp_s8u8<0, 4, 6>();
  tiles.template dp_s8u8<1, 4, 7>();
  tiles.template dp_s8u8<1, 5, 6>();
  tiles.template store<0>(m.c[0], 80);
  tiles.template store<1>(m.c[1], 80);
}

bool same(const unsigned char* x, const unsigned char* y, int count, bool floats) {
  for (int i = 0; i < count; i += 4) {
    float p, q;
    memcpy(&p, x + i, 4);
    memcpy(&q, y + i, 4);
    if (memcmp(x + i, y + i, 4) != 0 && !(floats && isnan(p) && isnan(q))) return false;
  }
  return true;
}

void compare_back_ends() {
  for (int round = 0; round < 200; ++round) {
    Matrices m, n;
    fill(m, round % 2 == 1);
    n = m;
    block_bf16<simd::EmulatedTiles>(m);
    block_bf16<simd::AmxTiles>(n);
    expect(same(m.c[0], n.c[0], sizeof m.c, true), "dp_bf16: instruction and emulation give the same bits");
    fill(m, true);
    n = m;
    const simd::TileConfig* const configs[] = {&simd::kFullTiles, &simd::kDepth32Tiles, &simd::kDepth16Tiles};
    block_s8u8<simd::EmulatedTiles>(m, *configs[round % 3]);
    block_s8u8<simd::AmxTiles>(n, *configs[round % 3]);
    expect(same(m.c[0], n.c[0], sizeof m.c, false), "dp_s8u8: instruction and emulation give the same bits");
  }
}

// One product against sums in double precision, computed from the matrices' definition.
void compare_with_definition() {
  Matrices m, n;
  fill(m, false);
  n = m;
  block_bf16<simd::EmulatedTiles>(m);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float c0, c1, got;
      memcpy(&c0, &n.c[0][80 * row + 4 * column], 4);
      double sum = 0, magnitude = fabs(double(c0));
      for (int k = 0; k < 32; ++k) {
        uint16_t a, b;
        memcpy(&a, &n.a[0][64 * row + 2 * k], 2);
        memcpy(&b, &n.b[0][64 * (k / 2) + 4 * column + 2 * (k % 2)], 2);
        uint32_t wide_a = uint32_t(a) << 16, wide_b = uint32_t(b) << 16;
        memcpy(&c1, &wide_a, 4);
        memcpy(&got, &wide_b, 4);
        sum += 2 * double(c1) * double(got);
        magnitude += 2 * fabs(double(c1) * double(got));
      }
      memcpy(&got, &m.c[0][80 * row + 4 * column], 4);
      // 16 fused additions, 1 for the pair of sums, 2 into C: at most 20 roundings of 2⁻²⁴, and flushed subnormals.
      expect(fabs(sum + double(c0) - double(got)) <= 20 * 0x1p-24 * magnitude + 200 * 0x1p-126,
             "dp_bf16: the definition");
    }
  }
}

void subnormals_become_zero() {
  Matrices m;
  memset(&m, 0, sizeof m);
  const uint16_t tiny = 0x0040, big = 0x7f00, small = 0x0100, half = 0x3f00;  // subnormal, 2¹²⁷, 2⁻¹²⁵, ½
  memcpy(m.a[0], &tiny, 2);        // row 0: subnormal · 2¹²⁷ counts as 0
  memcpy(m.a[0] + 64, &small, 2);  // row 1: 2⁻¹²⁵ · ½ stays, …
  memcpy(m.b[0], &big, 2);
  memcpy(m.b[0] + 4, &half, 2);
  const uint16_t quarter = 0x3e80;
  memcpy(m.b[0] + 8, &quarter, 2);  // … 2⁻¹²⁵ · ¼ is subnormal
  block_bf16<simd::EmulatedTiles>(m);
  float c[3];
  memcpy(c, m.c[0], 4);
  memcpy(c + 1, m.c[0] + 84, 4);
  memcpy(c + 2, m.c[0] + 88, 4);
  expect(c[0] == 0.f, "a subnormal input counts as 0");
  expect(c[1] == 0x1p-125f, "the smallest normal numbers remain (twice 2⁻¹²⁶)");
  expect(c[2] == 0.f, "a subnormal result becomes 0");
}

void compilers_keep_stores() {
  unsigned char from[simd::kTileBytes], out[simd::kTileBytes];
  bool all = true;
  for (auto& byte : from) byte = static_cast<unsigned char>(random_bits());
  fill_and_load(from, out);
  for (int i = 0; i < simd::kTileBytes; ++i) all &= out[i] == (from[i] ^ 0x5a);
  expect(all, "a tile load sees the stores before it");
  configure_on_stack(7, out);
  all = true;
  for (int i = 0; i < simd::kTileBytes; ++i) all &= i < 7 * 64 ? out[i] == 0 : out[i] == (from[i] ^ 0x5a);
  expect(all, "a configuration made on the stack is the one that is loaded");
}

void long_lives_end_in_nan() {
  alignas(64) unsigned char a[simd::kTileBytes] = {}, c[simd::kTileBytes];
  float first;
  simd::EmulatedTiles tiles(simd::kFullTiles);
  tiles.load<4>(a, 64);
  tiles.load<6>(a, 64);
  tiles.zero<0>();
  for (int i = 0; i < simd::kTileLife; ++i) tiles.dp_bf16<0, 4, 6>();
  tiles.store<0>(c, 64);
  memcpy(&first, c, 4);
  expect(first == 0.f, "tiles live for kTileLife products");
  tiles.dp_bf16<0, 4, 6>();
  tiles.store<0>(c, 64);
  memcpy(&first, c, 4);
  expect(isnan(first), "a tile held longer is lost");
  tiles.zero<0>();
  tiles.expire();
  tiles.store<0>(c, 64);
  memcpy(&first, c, 4);
  expect(isnan(first), "an expired tile is lost");
  simd::EmulatedTiles fresh(simd::kFullTiles);
  fresh.store<5>(c, 64);
  memcpy(&first, c, 4);
  expect(isnan(first), "a configured tile has no value yet");
}

void self_test(bool trapped) {
  AmxReport report = amx_self_test(50);
  printf("self-test: %d holds, %d losses\n", report.holds, report.losses);
  expect(report.holds > 0 && report.self_test == AmxSelfTest::passed, "tiles survive yields");
  if (!trapped) return;
  amx_trap::lose_every_store = simd::kTileCount;  // in each hold: on a busy machine there may be one
  report = amx_self_test(50);
  amx_trap::lose_every_store = 0;
  printf("self-test on a machine that loses tiles: %d holds, %d losses\n", report.holds, report.losses);
  expect(report.losses > 0 && report.self_test == AmxSelfTest::failed, "a machine that loses tiles is found out");
}

int run() {
  const AmxReport& report = amx_report();
  const bool trapped = !report.available;
  printf("AMX: %s\n", trapped ? report.reason : "available");
  if (trapped) {
    amx_trap::install();
    printf("AMX instructions are emulated one by one\n");
  }
  compare_back_ends();
  compare_with_definition();
  subnormals_become_zero();
  compilers_keep_stores();
  long_lives_end_in_nan();
  self_test(trapped);
  if (trapped) {
    for (int kind = 0; kind < amx_trap::kKinds; ++kind) {
      printf("  %-12s %lld\n", amx_trap::kNames[kind], static_cast<long long>(amx_trap::state.executed[kind]));
      expect(amx_trap::state.executed[kind] > 0, "every instruction was tried");
    }
  }
  printf(failures ? "%d failures\n" : "tiles: all passed\n", failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace lapidary

int main() { return lapidary::run(); }
