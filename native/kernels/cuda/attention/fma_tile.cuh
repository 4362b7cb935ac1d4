// attention/fma_tile.cuh: a tile of 16 rows against tiles of keys in f32 throughout, for f32 and f16 keys and values. Plain fused
// multiply-adds: its purpose is the accuracy of the contract's f32 kind, not speed.
//
// Eight neighbouring lanes hold a row: its scores of every eighth key, and of O every eighth group of four columns. A row's weights
// are exchanged through shared memory within the warp.
#pragma once
#include "kernels/cuda/attention/kv_source.cuh"
#include "kernels/cuda/attention/online_softmax.cuh"
#include "kernels/cuda/attention/tile_sizes.h"

namespace lapidary::cuda::attention {

template <int kHeadDim>
struct FmaTile {
  static constexpr int kD = kHeadDim, kRows = 16, kThreads = 128, kKeys = kD <= 256 ? 32 : 16;
  static constexpr bool kShared = false;
  static constexpr Defect kDefect = Defect::none;
  static constexpr int kStride = kD + 4;  // floats: eight rows meet different banks
  static constexpr int kKeysPerLane = kKeys / 8, kQuadsPerLane = kD / 32;
  static_assert(kD % 32 == 0);

  struct Shared {
    alignas(128) float q[kRows * kStride];
    alignas(128) float k[kKeys * kStride];
    alignas(128) float v[kKeys * kStride];
    float p[kRows * kKeys];
    int low[kRows], high[kRows];
    RowState rows;
    uint32_t flags[4];
  };

  Shared& shared;
  const Problem& p;
  bool missing = false;
  int row, part;
  float o[kQuadsPerLane][4];
  float s[kKeysPerLane];
  float reference = kNoReference, sum = 0;

  LAPIDARY_DEVICE FmaTile(const Problem& problem, Shared& memory) : shared(memory), p(problem) {
    row = thread_index() / 8;
    part = thread_index() % 8;
    for (int c = 0; c < kQuadsPerLane; ++c)
      for (int i = 0; i < 4; ++i) o[c][i] = 0;
  }

  LAPIDARY_DEVICE const RowState& state() const { return (&shared.rows)[opaque(0)]; }
  LAPIDARY_DEVICE Sequence sequence() const { return state().block.sequence; }
  LAPIDARY_DEVICE VisibleBlocks seen() const { return state().seen; }

  LAPIDARY_DEVICE void load_queries() {
    const RowBlock block = state().block;
    const float sign = p.negated ? -1.f : 1.f;
    for (int i = thread_index(); i < kRows * kD; i += kThreads) {
      const int r = i / kD, d = i % kD;
      float x = 0;
      if (r < block.rows && d < p.head_dim) {
        const QueryPlace place = query_of(p, block, r);
        const int64_t element = place.token * p.q_token + place.head * p.q_head + d;
        x = p.q_f32 ? load(reinterpret_cast<const float*>(p.q) + element)
                    : to_float(load(reinterpret_cast<const Bf16*>(p.q) + element));
      }
      store_shared(shared.q + r * kStride + d, x * sign);
    }
  }
  LAPIDARY_DEVICE void load_keys(const KeyTile& tile) {
    const KvRows rows = key_rows(p, state().block.kv_head, p.half_keys ? 2 : 4);
    missing |= load_f32_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, shared.k, kStride);
  }
  LAPIDARY_DEVICE void load_values(const KeyTile& tile) {
    const KvRows rows = value_rows(p, state().block.kv_head, p.half_keys ? 2 : 4);
    missing |= load_f32_tile<kD, kKeys, kThreads>(p, sequence(), seen(), rows, tile, shared.v, kStride);
  }

  LAPIDARY_DEVICE static void load_quad(const float* at, float (&x)[4]) {
    const Words4 words = load_shared(reinterpret_cast<const Words4*>(at));
    for (int i = 0; i < 4; ++i) x[i] = bit_cast<float>(words.word[i]);
  }

  LAPIDARY_DEVICE void multiply_keys() {
    for (int n = 0; n < kKeysPerLane; ++n) s[n] = 0;
#pragma unroll 2
    for (int d = 0; d < kD; d += 4) {
      float q[4], k[4];
      load_quad(shared.q + row * kStride + d, q);
      for (int n = 0; n < kKeysPerLane; ++n) {
        load_quad(shared.k + (part + 8 * n) * kStride + d, k);
        for (int i = 0; i < 4; ++i) s[n] = fma(q[i], k[i], s[n]);
      }
    }
  }

  LAPIDARY_DEVICE void transform_scores(const KeyTile& tile) {
    const int low = load_shared(shared.low + row), high = load_shared(shared.high + row);
    for (int n = 0; n < kKeysPerLane; ++n) {
      const int key = tile.first + part + 8 * n;
      if (p.capped) s[n] = dev::tanh(s[n] * p.cap_factor) * p.cap;
      if (key < low || key >= high) s[n] = kMinusInfinity;
    }
  }

  LAPIDARY_DEVICE void weigh_own() {
    const float factor = p.capped ? 1.f : p.factor;
    float largest = kMinusInfinity;
    for (int n = 0; n < kKeysPerLane; ++n) largest = max(largest, s[n]);
    for (int mask = 1; mask < 8; mask *= 2) largest = max(largest, shuffle_xor(largest, mask));
    const float moved = move_reference(reference, largest * factor);
    sum *= moved;
    for (int c = 0; c < kQuadsPerLane; ++c)
      for (int i = 0; i < 4; ++i) o[c][i] *= moved;
    for (int n = 0; n < kKeysPerLane; ++n) {
      const float weight = exp2_approx(fma(s[n], factor, -reference));
      sum += weight;
      store_shared(shared.p + row * kKeys + part + 8 * n, weight);
    }
    warp_barrier();
  }

  LAPIDARY_DEVICE void multiply_values() {
    for (int key = 0; key < kKeys; ++key) {
      const float weight = load_shared(shared.p + row * kKeys + key);
#pragma unroll
      for (int c = 0; c < kQuadsPerLane; ++c) {
        float v[4];
        load_quad(shared.v + key * kStride + 4 * (part + 8 * c), v);
        for (int i = 0; i < 4; ++i) o[c][i] = fma(weight, v[i], o[c][i]);
      }
    }
    warp_barrier();  // the weights of the next tile go where these were
  }

  LAPIDARY_DEVICE void complete_sums() {
    for (int mask = 1; mask < 8; mask *= 2) sum += shuffle_xor(sum, mask);
  }

  template <class Head, class Pair>
  LAPIDARY_DEVICE void for_results(const RowBlock& block, const Head& head, const Pair& pair) {
    if (row >= block.rows) return;
    if (part == 0) head(row, reference, sum);
#pragma unroll
    for (int c = 0; c < kQuadsPerLane; ++c) {
      const int column = 4 * (part + 8 * c);
      if (column >= p.head_dim) continue;
      pair(row, column, o[c][0], o[c][1], sum);
      pair(row, column + 2, o[c][2], o[c][3], sum);
    }
  }
};

}  // namespace lapidary::cuda::attention
