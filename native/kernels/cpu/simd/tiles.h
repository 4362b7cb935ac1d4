// simd/tiles.h: the tile vocabulary: eight 2-D registers and the matrix products on them, as Intel AMX has them. Two
// back ends provide `simd::Tiles`: tiles_amx.h (the instructions) and tiles_emulated.h (arrays, and stricter than the
// hardware).
//
//   Tiles tiles(config)                 configures this thread's tile unit; the destructor releases it
//   tiles.zero<C>()                     every byte of tile C becomes 0
//   tiles.load<T>(p, stride)            row r of tile T comes from p + r·stride bytes, as many as config says
//   tiles.store<T>(p, stride)           and back
//   tiles.dp_bf16<C, A, B>()            C[m][n] += Σ_k A[m][k] · B[k][n]    f32 += bf16 · bf16
//   tiles.dp_s8u8<C, A, B>()            the same                            i32 += s8 · u8, exact
//   tiles.expire()                      no value that a tile holds now will be used again
//
//   A   rows of consecutive k: [m][k], 64 bytes = 32 bf16 or 64 bytes of k
//   B   rows of k groups that fill a dword: [k/2][n][2] bf16, [k/4][n][4] bytes
//   C   [m][n] dwords
//
// Rounding of dp_bf16 (Intel SDM vol. 2, TDPBF16PS): per element the products with even k and those with odd k are
// summed separately from 0 by fused multiply-adds in ascending k; the two sums are added; that is added to C. Every
// step rounds to nearest even, subnormal inputs count as 0 and subnormal results become 0, whatever MXCSR says.
//
// The life of a tile. Some virtual machines lose tile contents when a thread is descheduled (backends/cpu/amx.h), and
// every context switch saves 8 KB while tiles are in use. So tile values live briefly: a kernel loads or zeroes,
// multiplies, stores and calls expire(), at most kTileLife products apart, and never holds a value across a barrier, a
// claim or the end of a `Tiles`. The emulation overwrites all tiles with NaNs at construction, at expire(), and
// whenever more than kTileLife products have passed since, as the worst reschedule would: a kernel that breaks the rule
// computes NaN in the tests.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/inline.h"

namespace lapidary {
namespace {
namespace simd {

static constexpr int kTileHeight = 16;
static constexpr int kTileRowBytes = 64;
static constexpr int kTileBytes = kTileHeight * kTileRowBytes;
static constexpr int kTileCount = 8;

// Products between two expire(): 256 take 4096 cycles, about a microsecond, half of what the guests that lose tiles
// were seen to survive (github.com/WizardSource/Kurn, attn_kernel.c: 8192 cycles).
static constexpr int kTileLife = 256;

// The operand of ldtilecfg (Intel SDM vol. 1, 18.3). Entries 8 … 15 must be 0.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// Every tile 16 × 64 bytes. Tails are padded with zeros in memory, never by another configuration.
static constexpr TileConfig kFullTiles = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// Products of 32 bytes of k: tiles 0 … 3 are C, 4 and 5 are A of 16 × 32 bytes, 6 and 7 are B of 8 × 64 bytes.
static constexpr TileConfig kDepth32Tiles = {
    1, 0, {}, {64, 64, 64, 64, 32, 32, 64, 64}, {16, 16, 16, 16, 16, 16, 8, 8}};

// Products of 16 bytes of k: as above with A of 16 × 16 bytes and B of 4 × 64 bytes.
static constexpr TileConfig kDepth16Tiles = {
    1, 0, {}, {64, 64, 64, 64, 16, 16, 64, 64}, {16, 16, 16, 16, 16, 16, 4, 4}};

}  // namespace simd
}  // namespace
}  // namespace lapidary
