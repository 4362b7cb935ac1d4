// attention/mma_tile.cuh: a tile of rows against tiles of keys on the tensor cores, for bf16 keys and values and for i8 ones, whose
// bytes are exact in bf16 (mma.m16n8k16, sums in f32). Sizes: tile_sizes.h.
//
//   S = Q · Kᵀ     kRows × kKeys: a warp's rows, its share of the keys; A fragments of Q and B fragments of K by ldmatrix
//   P = 2^(S·f − m)                in registers, where the accumulator of S is the A fragment of P; through shared memory where warps
//                                  share rows
//   O += P · V     a warp's rows, its share of the columns; V transposed by ldmatrix.trans
//
// Lane l of a warp holds of each 16 × 8 accumulator: rows l / 4 and l / 4 + 8, columns 2 · (l mod 4) and the next.
#pragma once
#include "kernels/cuda/attention/kv_source.cuh"
#include "kernels/cuda/attention/online_softmax.cuh"
#include "kernels/cuda/attention/tile_sizes.h"

namespace lapidary::cuda::attention {

template <class Size>
struct MmaTile {
  static constexpr int kD = Size::kD, kKeys = Size::kKeys, kRows = Size::kRows, kThreads = Size::kThreads;
  static constexpr int kRowTiles = Size::kRowTiles, kKeyWarps = Size::kKeyWarps;
  static constexpr bool kBytes = Size::kBytes, kShared = kKeyWarps > 1;  // kShared: warps share rows
  static constexpr Defect kDefect = Size::kDefect;
  static constexpr int kElementBytes = kBytes ? 1 : 2;
  static constexpr int kKeyTiles = kKeys / kKeyWarps / 8;  // of a warp, 8 keys each
  static constexpr int kColumns = kD / kKeyWarps;          // of O, of a warp
  static_assert(kKeyTiles == 1 || kKeyTiles % 2 == 0);
  static_assert(kColumns % 16 == 0);
  using Layout = TileLayout<kD>;

  struct Shared {
    alignas(128) uint16_t q[Layout::elements(kRows)];
    alignas(128) uint16_t k[Layout::elements(kKeys)];
    alignas(128) uint16_t v[Layout::elements(kKeys)];
    alignas(128) uint16_t p[kShared ? kRows * kKeys : 8];
    float exchange[kShared ? kKeyWarps * kRows : 1];  // largest scores of a tile, in the end sums
    int low[kRows], high[kRows];
    float k_scales[kBytes ? kKeys : 1], v_scales[kBytes ? kKeys : 1];
    RowState rows;
    uint32_t flags[4];
  };

  Shared& shared;
  const Problem& p;
  bool missing = false;     // some row of keys that this thread looked for is on no page
  int row0, key0, column0;  // of this warp in the tile
  float o[kRowTiles][kColumns / 8][4];
  float s[kRowTiles][kKeyTiles][4];
  float reference[kRowTiles][2], sum[kRowTiles][2];

  LAPIDARY_DEVICE MmaTile(const Problem& problem, Shared& memory) : shared(memory), p(problem) {
    row0 = warp_index() / kKeyWarps * 16 * kRowTiles;
    key0 = warp_index() % kKeyWarps * kKeyTiles * 8;
    column0 = warp_index() % kKeyWarps * kColumns;
    for (int m = 0; m < kRowTiles; ++m) {
      for (int i = 0; i < 2; ++i) {
        reference[m][i] = kNoReference;
        sum[m][i] = 0;
      }
      for (int c = 0; c < kColumns / 8; ++c)
        for (int i = 0; i < 4; ++i) o[m][c][i] = 0;
    }
  }

  // Where a row's weights lie in `p`, by chunks of 8 keys; swizzled as TileLayout's rows are.
  LAPIDARY_DEVICE static int weight_at(int row, int chunk) {
    constexpr int kChunks = kKeys / 8;
    return row * kKeys + 8 * (kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & (kChunks - 1)));
  }

  LAPIDARY_DEVICE const RowState& state() const { return (&shared.rows)[opaque(0)]; }
  LAPIDARY_DEVICE Sequence sequence() const { return state().block.sequence; }
  LAPIDARY_DEVICE VisibleBlocks seen() const { return state().seen; }

  // Rows of q as bf16, with the sign of the scale; zeros past the block and past the head.
  LAPIDARY_DEVICE void load_queries() {
    const RowBlock block = state().block;
#pragma unroll 2
    for (int i = thread_index(); i < kRows * Layout::kChunks; i += kThreads) {
      const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
      Words4 words = {};
      if (row < block.rows && chunk * 8 < p.head_dim) {
        const QueryPlace place = query_of(p, block, row);
        const int64_t element = place.token * p.q_token + place.head * p.q_head + 8 * chunk;
        if (p.q_f32) {
          const float* from = reinterpret_cast<const float*>(p.q) + element;
          for (int w = 0; w < 4; ++w) words.word[w] = pack_bf16(load(from + 2 * w), load(from + 2 * w + 1));
        } else if (p.q_aligned) {
          words = load_stream_16(p.q + 2 * element);
        } else {
          words = gather_16_bits(p.q + 2 * element);
        }
        const uint32_t sign = p.negated ? 0x80008000u : 0;
        for (int w = 0; w < 4; ++w) words.word[w] ^= sign;
      }
      store_shared(reinterpret_cast<Words4*>(shared.q + Layout::at(row, chunk)), words);
    }
  }

  LAPIDARY_DEVICE void load_keys(const KeyTile& tile) {
    const KvRows rows = key_rows(p, state().block.kv_head, kElementBytes);
    if constexpr (kBytes) {
      missing |= load_i8_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, state().block.kv_head, shared.k,
                                                   shared.k_scales);
    } else {
      missing |= load_bf16_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, shared.k);
    }
  }
  LAPIDARY_DEVICE void load_values(const KeyTile& tile) {
    const KvRows rows = value_rows(p, state().block.kv_head, kElementBytes);
    if constexpr (kBytes) {
      missing |= load_i8_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, state().block.kv_head, shared.v,
                                                   shared.v_scales);
    } else {
      missing |= load_bf16_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, shared.v);
    }
  }

  LAPIDARY_DEVICE void multiply_keys() {
    for (int m = 0; m < kRowTiles; ++m)
      for (int n = 0; n < kKeyTiles; ++n)
        for (int i = 0; i < 4; ++i) s[m][n][i] = 0;
    const int l = opaque(lane());
    if constexpr (kKeyTiles == 1) {  // 8 keys: a fragment of four matrices is two steps of 16 elements
#pragma unroll
      for (int step = 0; step < kD / 32; ++step) {
        uint32_t b[4];
        ldmatrix_x4(b, shared.k + Layout::at_step(key0 + l % 8, l / 8, 4 * step));
        for (int m = 0; m < kRowTiles; ++m) {
          for (int half = 0; half < 2; ++half) {
            uint32_t a[4];
            ldmatrix_x4(a, shared.q + Layout::at_step(row0 + 16 * m + l % 16, l / 16, 4 * step + 2 * half));
            mma_bf16(s[m][0], a, b[2 * half], b[2 * half + 1]);
          }
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < kD / 16; ++step) {
        uint32_t a[kRowTiles][4];
        for (int m = 0; m < kRowTiles; ++m)
          ldmatrix_x4(a[m], shared.q + Layout::at_step(row0 + 16 * m + l % 16, l / 16, 2 * step));
#pragma unroll
        for (int n = 0; n < kKeyTiles / 2; ++n) {
          uint32_t b[4];
          ldmatrix_x4(b, shared.k + Layout::at_step(key0 + 16 * n + l / 16 * 8 + l % 8, l / 8 & 1, 2 * step));
          for (int m = 0; m < kRowTiles; ++m) {
            mma_bf16(s[m][2 * n], a[m], b[0], b[1]);
            mma_bf16(s[m][2 * n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
  }

  // Scores to exponents: scales of i8 keys, the soft cap, the mask.
  LAPIDARY_DEVICE void transform_scores(const KeyTile& tile) {
    const int first = key0 + 2 * (lane() % 4);
    if constexpr (kBytes) {
      for (int n = 0; n < kKeyTiles; ++n) {
        const float scale[2] = {load_shared(shared.k_scales + first + 8 * n),
                                load_shared(shared.k_scales + first + 8 * n + 1)};
        for (int m = 0; m < kRowTiles; ++m)
          for (int i = 0; i < 4; ++i) s[m][n][i] *= scale[i & 1];
      }
    }
    if (p.capped) {
      for (int m = 0; m < kRowTiles; ++m)
        for (int n = 0; n < kKeyTiles; ++n)
          for (int i = 0; i < 4; ++i) s[m][n][i] = tanh_approx(s[m][n][i] * p.cap_factor) * p.cap;
    }
    const VisibleBlocks keys = seen();
    if (tile.first >= keys.inner_begin && tile.first + kKeys <= keys.inner_end) return;
    const int own = opaque(row0 + lane() / 4);
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        const int row = own + 16 * m + 8 * half;
        const int low = load_shared(shared.low + row), high = load_shared(shared.high + row);
        for (int n = 0; n < kKeyTiles; ++n) {
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            const int key = tile.first + first + 8 * n + (i & 1);
            if (key < low || key >= high) s[m][n][i] = kMinusInfinity;
          }
        }
      }
    }
  }

  // The largest score of each of the thread's rows, of this warp's keys.
  LAPIDARY_DEVICE void find_largest(float (&largest)[kRowTiles][2]) {
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        float most = kMinusInfinity;
        for (int n = 0; n < kKeyTiles; ++n) most = max(most, max(s[m][n][2 * half], s[m][n][2 * half + 1]));
        most = max(most, shuffle_xor(most, 1));
        largest[m][half] = max(most, shuffle_xor(most, 2));
      }
    }
  }

  LAPIDARY_DEVICE void move_references(const float (&largest)[kRowTiles][2]) {
    const float factor = p.capped ? 1.f : p.factor;
    float moved[kRowTiles][2];
    bool any = false;
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        moved[m][half] = move_reference(reference[m][half], largest[m][half] * factor);
        sum[m][half] *= moved[m][half];
        any |= moved[m][half] != 1.f;
      }
    }
    if (warp_ballot(any) == 0) return;
    for (int m = 0; m < kRowTiles; ++m)
      for (int c = 0; c < kColumns / 8; ++c)
        for (int i = 0; i < 4; ++i) o[m][c][i] *= moved[m][i / 2];
  }

  LAPIDARY_DEVICE void weigh() {
    const float factor = p.capped ? 1.f : p.factor;
    for (int m = 0; m < kRowTiles; ++m) {
      for (int n = 0; n < kKeyTiles; ++n) {
        for (int i = 0; i < 4; ++i) {
          const float weight = exp2_approx(fma(s[m][n][i], factor, -reference[m][i / 2]));
          sum[m][i / 2] += weight;
          s[m][n][i] = weight;
        }
      }
    }
    if constexpr (kBytes) {
      const int first = key0 + 2 * (lane() % 4);
      for (int n = 0; n < kKeyTiles; ++n) {
        const float scale[2] = {load_shared(shared.v_scales + first + 8 * n),
                                load_shared(shared.v_scales + first + 8 * n + 1)};
        for (int m = 0; m < kRowTiles; ++m)
          for (int i = 0; i < 4; ++i) s[m][n][i] *= scale[i & 1];
      }
    }
  }

  LAPIDARY_DEVICE void share_weights() {
    const int l = lane();
    for (int m = 0; m < kRowTiles; ++m) {
      for (int n = 0; n < kKeyTiles; ++n) {
        for (int half = 0; half < 2; ++half) {
          const int row = row0 + 16 * m + 8 * half + l / 4;
          uint16_t* at = shared.p + weight_at(row, key0 / 8 + n) + 2 * (l % 4);
          store_shared(reinterpret_cast<uint32_t*>(at), pack_bf16(s[m][n][2 * half], s[m][n][2 * half + 1]));
        }
      }
    }
  }

  LAPIDARY_DEVICE void multiply_values() {
    const int l = opaque(lane());
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t a[kRowTiles][4];
      for (int m = 0; m < kRowTiles; ++m) {
        if constexpr (kShared) {
          ldmatrix_x4(a[m], shared.p + weight_at(row0 + 16 * m + l % 16, 2 * step + l / 16));
        } else {
          a[m][0] = pack_bf16(s[m][2 * step][0], s[m][2 * step][1]);
          a[m][1] = pack_bf16(s[m][2 * step][2], s[m][2 * step][3]);
          a[m][2] = pack_bf16(s[m][2 * step + 1][0], s[m][2 * step + 1][1]);
          a[m][3] = pack_bf16(s[m][2 * step + 1][2], s[m][2 * step + 1][3]);
        }
      }
#pragma unroll
      for (int c = 0; c < kColumns / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, shared.v + Layout::at_step(16 * step + l % 16, column0 / 8 + l / 16, 2 * c));
        for (int m = 0; m < kRowTiles; ++m) {
          mma_bf16(o[m][2 * c], a[m], b[0], b[1]);
          mma_bf16(o[m][2 * c + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Scores of a tile to weights and moved sums, where no other warp holds the rows.
  LAPIDARY_DEVICE void weigh_own() {
    float largest[kRowTiles][2];
    find_largest(largest);
    move_references(largest);
    weigh();
  }

  // The same in two steps, with a barrier between.
  LAPIDARY_DEVICE void share_largest() {
    float largest[kRowTiles][2];
    find_largest(largest);
    if (lane() % 4 != 0) return;
    for (int m = 0; m < kRowTiles; ++m)
      for (int half = 0; half < 2; ++half)
        store_shared(shared.exchange + warp_index() % kKeyWarps * kRows + row0 + 16 * m + 8 * half + lane() / 4,
                     largest[m][half]);
  }
  LAPIDARY_DEVICE void weigh_shared() {
    float largest[kRowTiles][2];
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        largest[m][half] = kMinusInfinity;
        const float* at = shared.exchange + row0 + 16 * m + 8 * half + lane() / 4;
        for (int w = 0; w < kKeyWarps; ++w) largest[m][half] = max(largest[m][half], load_shared(at + w * kRows));
      }
    }
    move_references(largest);
    weigh();
    share_weights();
  }

  // Sums over all keys. A barrier lies before it, where warps share rows.
  LAPIDARY_DEVICE void complete_sums() {
    for (int m = 0; m < kRowTiles; ++m) {
      for (int half = 0; half < 2; ++half) {
        sum[m][half] += shuffle_xor(sum[m][half], 1);
        sum[m][half] += shuffle_xor(sum[m][half], 2);
      }
    }
    if constexpr (kShared) {
      for (int m = 0; m < kRowTiles; ++m)
        for (int half = 0; half < 2; ++half)
          if (lane() % 4 == 0)
            store_shared(shared.exchange + warp_index() % kKeyWarps * kRows + row0 + 16 * m + 8 * half + lane() / 4,
                         sum[m][half]);
      block_barrier();
      for (int m = 0; m < kRowTiles; ++m) {
        for (int half = 0; half < 2; ++half) {
          const float* at = shared.exchange + row0 + 16 * m + 8 * half + lane() / 4;
          sum[m][half] = load_shared(at);
          for (int w = 1; w < kKeyWarps; ++w) sum[m][half] += load_shared(at + w * kRows);
        }
      }
    }
  }

  // Calls head(row, reference, sum) once for each row of the block, in some thread, and pair(row, column, O's element, the next, sum) for
  // all of O. Sums are complete.
  template <class Head, class Pair>
  LAPIDARY_DEVICE void for_results(const RowBlock& block, const Head& head, const Pair& pair) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row0 + 16 * m + 8 * half + lane() / 4;
        if (row >= block.rows) continue;
        if (column0 == 0 && lane() % 4 == 0) head(row, reference[m][half], sum[m][half]);
#pragma unroll
        for (int c = 0; c < kColumns / 8; ++c) {
          if (column0 + 8 * c < p.head_dim)
            pair(row, column0 + 8 * c + 2 * (lane() % 4), o[m][c][2 * half], o[m][c][2 * half + 1], sum[m][half]);
        }
      }
    }
  }
};

}  // namespace lapidary::cuda::attention
