// tile_keys.h: a block of keys and values as tiles.
//
//   K as A tiles     16 keys × 32 of head_dim, where they lie: a row of a tile is 64 bytes of a row of K
//   Vᵀ as A tiles    [keys / 32][head_dim / 16][16 of head_dim][32 keys] bf16, always made
//
// Keys are copied, and padded with zeros, only where 16 rows are not evenly spaced (the border of a page), where some
// are invisible, where head_dim is no multiple of 32, and where K is i8. Values are interleaved in pairs of keys and
// transposed, 16 × 16 dwords at a time: 80 shuffles for 32 × 16 elements, 0.16 cycles each, once per block of rows.
//
// Bytes of i8 are exact in bf16; their scales are applied to scores and weights.
#pragma once
#include "kernels/cpu/flash_attention/bf16_products.h"
#include "kernels/cpu/flash_attention/lanes.h"
#include "kernels/cpu/flash_attention/work_items.h"

namespace lapidary {
namespace {
namespace attention_amx {

using namespace simd;
using namespace attention;

static constexpr int kMostTileKeys = 512;  // keys in a block
static constexpr int kStepDim = 32;        // of head_dim, in one product of scores
static constexpr int kGroupKeys = 32;      // keys in one product of values

// Copied rows, or K's own; a tile of invisible keys is one row of zeros sixteen times.
struct KeyTile {
  const unsigned char* data;
  int64_t row_stride, step_stride;  // bytes to the next key, to the next 32 of head_dim
};

struct TileBlock {
  int first;       // absolute, a multiple of the block's length
  int begin, end;  // of it: what any row of the piece sees
  KeyTile keys[kMostTileKeys / kTileHeight];
  unsigned char* values;
  float key_scales[kMostTileKeys], value_scales[kMostTileKeys];  // i8 only, from `first` on
};

LAPIDARY_INLINE int padded(int head_dim) { return (head_dim + kStepDim - 1) / kStepDim * kStepDim; }

// 32 values (rows of V, in order) as Vᵀ tiles.
template <DType kType>
static void transpose_values(const unsigned char* const* rows, int head_dim, unsigned char* out) {
  for (int d = 0; d < head_dim; d += kStepDim, out += 2 * kTileBytes) {
    F32 low[kLanes], high[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const InterleavedRows pairs = interleave(load_as_bf16<kType>(rows[2 * i], d, head_dim - d),
                                               load_as_bf16<kType>(rows[2 * i + 1], d, head_dim - d));
      low[i] = _mm512_castsi512_ps(pairs.low);
      high[i] = _mm512_castsi512_ps(pairs.high);
    }
    transpose(low);
    transpose(high);
    float* const to = reinterpret_cast<float*>(out);
    for (int i = 0; i < kLanes; ++i) store(to + i * kLanes, low[i]);
    for (int i = 0; i < kLanes; ++i) store(to + (kLanes + i) * kLanes, high[i]);
  }
}

// Row `r` of a copied tile of K; zeros past head_dim.
template <DType kType>
LAPIDARY_INLINE void copy_key(const unsigned char* key, int head_dim, int r, unsigned char* tile) {
  for (int d = 0; d < head_dim; d += kStepDim, tile += kTileBytes) {
    store_bytes(tile + r * kTileRowBytes, load_as_bf16<kType>(key, d, head_dim - d));
  }
}

LAPIDARY_INLINE bool evenly_spaced(const unsigned char* const* rows) {
  bool even = true;
  for (int i = 2; i < kTileHeight; ++i) even &= rows[i] - rows[i - 1] == rows[1] - rows[0];
  return even;
}

// Which keys of the block some row of the piece sees, from block.first on. Only intervals of the caller's own leave
// gaps between rows, and only values need it: a weight of 0 does not undo a NaN.
static void mark_seen_keys(const Problem& p, const Piece& piece, const TileBlock& block, bool* seen, Team& team) {
  int change[kMostTileKeys + 1] = {};
  const int64_t last = (piece.row_begin + piece.rows - 1) / p.group;
  for (int64_t token = piece.row_begin / p.group; token <= last; ++token) {
    const Interval keys = visible_keys(p, piece.sequence, int(token), team);
    const int begin = keys.begin > block.begin ? keys.begin : block.begin;
    const int end = keys.end < block.end ? keys.end : block.end;
    if (begin >= end) continue;
    ++change[begin - block.first];
    --change[end - block.first];
  }
  for (int key = 0, rows = 0; key < kMostTileKeys; ++key) {
    rows += change[key];
    seen[key] = rows > 0;
  }
}

// Brings block.begin … block.end into tiles. `copies` has room for the whole block's keys. False where one is on no
// page of the cache.
template <DType kType>
static bool place_block(const Problem& p, const Piece& piece, TileBlock& block, unsigned char* copies, Team& team) {
  const int64_t key_bytes = int64_t(padded(p.head_dim)) * 2;
  bool seen[kMostTileKeys];
  if (p.key_low) mark_seen_keys(p, piece, block, seen, team);
  KeyRows rows;
  bool found = true;
  for (int run = block.begin / kBlockKeys * kBlockKeys; run < block.end; run += kBlockKeys) {
    const int begin = run > block.begin ? run : block.begin;
    const int end = run + kBlockKeys < block.end ? run + kBlockKeys : block.end;
    found &= find_rows(p, piece.sequence, piece.kv_head, begin, end - begin, rows);
    if (p.key_scales) {
      KeyScales scales;
      read_scales(p, piece.sequence, piece.kv_head, begin, end - begin, scales);
      memcpy(block.key_scales + (begin - block.first), scales.keys, size_t(end - begin) * 4);
      memcpy(block.value_scales + (begin - block.first), scales.values, size_t(end - begin) * 4);
    }
    for (int key = begin / 32 * 32; key < end; key += 32) {
      for (int tile = key; tile < key + 32; tile += kTileHeight) {
        KeyTile& to = block.keys[(tile - block.first) / kTileHeight];
        const bool whole = tile >= begin && tile + kTileHeight <= end;
        if (whole && kType == DType::bf16 && p.head_dim % kStepDim == 0 && evenly_spaced(rows.keys + (tile - begin))) {
          to = {rows.keys[tile - begin], rows.keys[tile - begin + 1] - rows.keys[tile - begin], 2 * kStepDim};
          continue;
        }
        if (tile + kTileHeight <= begin || tile >= end) {
          to = {kZeroRow, 0, 0};
          continue;
        }
        unsigned char* const copy = copies + (tile - block.first) * key_bytes;
        for (int r = 0; r < kTileHeight; ++r) {
          const int at = tile + r;
          copy_key<kType>(at >= begin && at < end ? rows.keys[at - begin] : kZeroRow, p.head_dim, r, copy);
        }
        to = {copy, kTileRowBytes, kTileBytes};
      }
      const unsigned char* values[32];
      for (int i = 0; i < 32; ++i) {
        const int at = key + i;
        const bool visible = at >= begin && at < end && (!p.key_low || seen[at - block.first]);
        values[i] = visible ? rows.values[at - begin] : kZeroRow;
      }
      transpose_values<kType>(values, p.head_dim, block.values + (key - block.first) * key_bytes);
    }
  }
  return found;
}

}  // namespace attention_amx
}  // namespace
}  // namespace lapidary
