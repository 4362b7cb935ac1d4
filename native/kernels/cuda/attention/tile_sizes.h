// attention/tile_sizes.h: how many rows and keys a block of threads works on, and what that takes.
//
// A block is kRowWarps × kKeyWarps warps. Each holds kRowTiles · 16 rows; warps that share rows share out the keys of a score tile and
// the columns of the output.
//
//                     rows   keys   warps   shared memory   what binds
//   prefill   64     4·2·16    64   4 × 1        32 KB       32 rows per warp: every fragment of K and V that ldmatrix fetches is
//             80, 96 4·2·16    64   4 × 1     47, 56 KB      used twice, or shared memory (128 B per clock) would bind, not the
//            128     4·2·16    64   4 × 1        64 KB       tensor cores
//            256     4·16      64   4 × 1        96 KB       O alone takes 128 registers; 99 KB is all that compute capability
//                                                            8.6, 8.9 and 12.0 have, and two blocks fit on 9.0 (as FlashAttention-2)
//            512     2·16      32   2 × 2        98 KB       O of 16 rows takes 256 registers: two warps share it
//   decode    64       16     128   1 × 4        34 KB       16 rows are one fragment; the keys are the work. One tile of K or V in
//            128       16      64   1 × 4        36 KB       flight per block, three blocks and more per multiprocessor: 4.3 TB/s
//            256       16      64   1 × 4        72 KB       times 1 µs is 32 KB per multiprocessor of an H200
//            512       16      32   1 × 4        81 KB
//
// i8 tiles are bf16 once they are in shared memory: the same sizes. Kernels of the f32 kind: fma_tile.cuh.
#pragma once

namespace lapidary::cuda::attention {

// What a tile does wrong, for the controls of the tests: kernels use `none`.
enum class Defect { none, missing_barrier, early_read, missing_fence };

template <int kHeadDim, int kRowTilesPerWarp, int kRowWarpCount, int kKeyWarpCount, int kKeyCount, bool kI8,
          Defect kPlanted = Defect::none>
struct MmaTileSize {
  static constexpr int kD = kHeadDim;
  static constexpr int kRowTiles = kRowTilesPerWarp;
  static constexpr int kRowWarps = kRowWarpCount;
  static constexpr int kKeyWarps = kKeyWarpCount;
  static constexpr int kKeys = kKeyCount;
  static constexpr bool kBytes = kI8;
  static constexpr Defect kDefect = kPlanted;
  static constexpr int kRows = 16 * kRowTiles * kRowWarps;
  static constexpr int kThreads = 32 * kRowWarps * kKeyWarps;
};

template <int kD, bool kBytes>
struct PrefillSize : MmaTileSize<kD, 2, 4, 1, 64, kBytes> {};
// 16 rows per warp: scales of keys and values take what 32 rows would need.
template <>
struct PrefillSize<128, true> : MmaTileSize<128, 1, 4, 1, 64, true> {};
template <bool kBytes>
struct PrefillSize<256, kBytes> : MmaTileSize<256, 1, 4, 1, 64, kBytes> {};
template <bool kBytes>
struct PrefillSize<512, kBytes> : MmaTileSize<512, 1, 2, 2, 32, kBytes> {};

template <int kD, bool kBytes>
struct DecodeSize : MmaTileSize<kD, 1, 1, 4, 64, kBytes> {};
template <bool kBytes>
struct DecodeSize<64, kBytes> : MmaTileSize<64, 1, 1, 4, 128, kBytes> {};
template <bool kBytes>
struct DecodeSize<512, kBytes> : MmaTileSize<512, 1, 1, 4, 32, kBytes> {};

// ── decoding ────────────────────────────────────────────────────────────────────────────────────────────────────────
// Keys are cut into chunks whose size depends on the row block's own keys alone, so that neither the batch nor the device changes a
// bit: 128 keys, or more where there would be above 64 chunks. 128 keys of 256 elements are 128 KB, some 3 µs of one multiprocessor; a
// partial result of two rows is 2 KB.
static constexpr int kChunkKeys = 128;
static constexpr int kMostChunks = 64;

}  // namespace lapidary::cuda::attention
