// simd/tiles_amx.h: the tile vocabulary (tiles.h) as AMX instructions.
//
// Own inline assembly instead of <amxtileintrin.h>: gcc 12's _tile_loadconfig tells the compiler about 8 of the 64
// bytes it reads, and its _tile_loadd about none, so that stores into a configuration or a tile buffer are dropped as
// dead (ggml-org/llama.cpp#26954 is one victim). Here the configuration is a 64-byte memory operand, and a tile load or
// store clobbers memory: every store before a load in the source is before it in the program.
// test/native/check-amx-objects.sh looks. The asm statements are volatile, so they stay in order among themselves;
// nothing else touches the tile registers.
#pragma once
#include "kernels/cpu/simd/tiles.h"

namespace lapidary {
namespace {
namespace simd {

class Tiles {
 public:
  LAPIDARY_MEMBER_INLINE explicit Tiles(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  LAPIDARY_MEMBER_INLINE ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  LAPIDARY_MEMBER_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  LAPIDARY_MEMBER_INLINE void load(const void* p, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  LAPIDARY_MEMBER_INLINE void store(void* p, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kC, int kA, int kB>
  LAPIDARY_MEMBER_INLINE void dp_bf16() {
    static_assert(kC != kA && kC != kB && kA != kB);  // anything else is an invalid instruction
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  LAPIDARY_MEMBER_INLINE void dp_s8u8() {
    static_assert(kC != kA && kC != kB && kA != kB);
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
  LAPIDARY_MEMBER_INLINE void expire() {}
};

}  // namespace simd
}  // namespace
}  // namespace lapidary
