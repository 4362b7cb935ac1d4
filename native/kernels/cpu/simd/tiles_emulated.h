// simd/tiles_emulated.h: the tile vocabulary (tiles.h) on arrays, for machines without AMX and for tests.
//
// Same results as the instructions, bit for bit, NaN payloads aside. Stricter about the life of tiles: see tiles.h.
// About a thousand cycles per product on AVX-512 instead of sixteen.
#pragma once
#include <cstring>

#include "kernels/cpu/simd/tiles.h"

namespace lapidary {
namespace {
namespace simd {

class Tiles {
 public:
  LAPIDARY_MEMBER_INLINE explicit Tiles(const TileConfig& config) : config_(config) { expire(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  LAPIDARY_MEMBER_INLINE void zero() {
    memset(tile_[kTile], 0, sizeof tile_[kTile]);
  }
  template <int kTile>
  LAPIDARY_MEMBER_INLINE void load(const void* p, size_t stride) {
    memset(tile_[kTile], 0, sizeof tile_[kTile]);  // the hardware clears what lies outside the configured shape
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      memcpy(tile_[kTile][row], static_cast<const unsigned char*>(p) + size_t(row) * stride, config_.row_bytes[kTile]);
    }
  }
  template <int kTile>
  LAPIDARY_MEMBER_INLINE void store(void* p, size_t stride) {
    for (int row = 0; row < config_.rows[kTile]; ++row) {
      memcpy(static_cast<unsigned char*>(p) + size_t(row) * stride, tile_[kTile][row], config_.row_bytes[kTile]);
    }
  }
  template <int kC, int kA, int kB>
  LAPIDARY_MEMBER_INLINE void dp_bf16() {
    if (age(kC, kA, kB)) return;
    dp_bf16(tile_[kC], tile_[kA], tile_[kB], config_.rows[kC], config_.row_bytes[kA] / 4);
  }
  template <int kC, int kA, int kB>
  LAPIDARY_MEMBER_INLINE void dp_s8u8() {
    if (age(kC, kA, kB)) return;
    dp_s8u8(tile_[kC], tile_[kA], tile_[kB], config_.rows[kC], config_.row_bytes[kA] / 4);
  }
  LAPIDARY_MEMBER_INLINE void expire() {
    products_ = 0;
    const uint16_t poison = 0x7fc1;  // a NaN as bf16, twice a NaN as f32, far from every exact int32 sum
    for (auto& tile : tile_) {
      for (auto& row : tile) {
        for (int i = 0; i < kTileRowBytes; i += 2) memcpy(row + i, &poison, 2);
      }
    }
  }

 private:
  using Tile = unsigned char[kTileHeight][kTileRowBytes];

  // Counts a product, and forgets everything when tiles have lived too long or when the instruction would fault because
  // the shapes do not fit.
  LAPIDARY_MEMBER_INLINE bool age(int c, int a, int b) {
    const bool fits = config_.rows[c] == config_.rows[a] && config_.row_bytes[a] == 4 * config_.rows[b] &&
                      config_.row_bytes[b] == config_.row_bytes[c] && config_.rows[c] > 0;
    if (++products_ <= kTileLife && fits) return false;
    expire();
    return true;
  }

  // A float with a subnormal value becomes 0 of the same sign.
  LAPIDARY_MEMBER_INLINE static float flush(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits &= (bits & 0x7f800000u) ? 0xffffffffu : 0x80000000u;
    memcpy(&value, &bits, 4);
    return value;
  }
  LAPIDARY_MEMBER_INLINE static float widen(uint32_t upper_half) {
    float value;
    memcpy(&value, &upper_half, 4);
    return flush(value);
  }

  // C is 16 columns wide in every configuration we use (tiles.h).
  __attribute__((noinline)) static void dp_bf16(Tile& c, const Tile& a, const Tile& b, int rows, int pairs) {
    float even[kTileHeight][16], odd[kTileHeight][16];  // B, widened once
    for (int k = 0; k < pairs; ++k) {
      for (int n = 0; n < 16; ++n) {
        uint32_t pair;
        memcpy(&pair, &b[k][4 * n], 4);
        even[k][n] = widen(pair << 16);
        odd[k][n] = widen(pair & 0xffff0000u);
      }
    }
    for (int m = 0; m < rows; ++m) {
      float sum_even[16] = {}, sum_odd[16] = {}, out[16];
      for (int k = 0; k < pairs; ++k) {
        uint32_t pair;
        memcpy(&pair, &a[m][4 * k], 4);
        const float a_even = widen(pair << 16), a_odd = widen(pair & 0xffff0000u);
        for (int n = 0; n < 16; ++n) {
          sum_even[n] = flush(__builtin_fmaf(a_even, even[k][n], sum_even[n]));
          sum_odd[n] = flush(__builtin_fmaf(a_odd, odd[k][n], sum_odd[n]));
        }
      }
      memcpy(out, c[m], sizeof out);
      for (int n = 0; n < 16; ++n) out[n] = flush(flush(out[n]) + flush(sum_even[n] + sum_odd[n]));
      memcpy(c[m], out, sizeof out);
    }
  }

  __attribute__((noinline)) static void dp_s8u8(Tile& c, const Tile& a, const Tile& b, int rows, int quads) {
    for (int m = 0; m < rows; ++m) {
      uint32_t out[16];  // two's complement wraps, as the hardware's sums do
      memcpy(out, c[m], sizeof out);
      for (int k = 0; k < quads; ++k) {
        for (int n = 0; n < 16; ++n) {
          for (int j = 0; j < 4; ++j) out[n] += uint32_t(int8_t(a[m][4 * k + j]) * int32_t(b[k][4 * n + j]));
        }
      }
      memcpy(c[m], out, sizeof out);
    }
  }

  alignas(64) Tile tile_[kTileCount];
  TileConfig config_;
  int products_ = 0;
};

}  // namespace simd
}  // namespace
}  // namespace lapidary
