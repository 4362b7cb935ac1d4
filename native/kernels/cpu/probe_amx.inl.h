// probe_amx.inl.h: probe with tile products: four accumulator tiles, so that a product never waits for the one before
// it. Contract: ops/probe.h. The tiles are held for the whole measurement, which kernels must not do (simd/tiles.h):
// the values are not used.
#include "kernels/cpu/probe/bf16_loop.h"

namespace lapidary {
namespace {

static float probe_tiles(ProbeKind kind, int64_t repetitions, float& operations) {
  static const unsigned char kOnes[simd::kTileBytes] = {1};
  simd::Tiles tiles(simd::kFullTiles);
  tiles.load<4>(kOnes, simd::kTileRowBytes);
  tiles.load<5>(kOnes, simd::kTileRowBytes);
  tiles.load<6>(kOnes, simd::kTileRowBytes);
  tiles.load<7>(kOnes, simd::kTileRowBytes);
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  const int products = 4;
  if (kind == ProbeKind::tile_bf16) {
    for (int64_t r = 0; r < repetitions; ++r) {
      tiles.dp_bf16<0, 4, 6>();
      tiles.dp_bf16<1, 4, 7>();
      tiles.dp_bf16<2, 5, 6>();
      tiles.dp_bf16<3, 5, 7>();
    }
  } else {
    for (int64_t r = 0; r < repetitions; ++r) {
      tiles.dp_s8u8<0, 4, 6>();
      tiles.dp_s8u8<1, 4, 7>();
      tiles.dp_s8u8<2, 5, 6>();
      tiles.dp_s8u8<3, 5, 7>();
    }
  }
  const int depth = kind == ProbeKind::tile_bf16 ? 32 : 64;
  operations = 2.f * 16 * 16 * float(depth * products);
  tiles.expire();
  return 0;
}

static void probe(const Call& call, Team& team) {
  probe_with(call, team, [](ProbeKind kind, int64_t repetitions, float& operations) {
    return kind == ProbeKind::dot_bf16 ? probe_dot_bf16(repetitions, operations)
                                       : probe_tiles(kind, repetitions, operations);
  });
}

static const Kernel kKernels[] = {{OpId::probe, probe, nullptr}};

}  // namespace
}  // namespace lapidary
