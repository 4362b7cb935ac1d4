// sampling/logit_rows.h: what is read of a row of logits: maxima of blocks, weights of blocks, and the candidates.
// Include after simd/<isa>.h.
#pragma once
#include "kernels/cpu/kernel.h"
#include "kernels/cpu/sampling/candidates.h"
#include "kernels/cpu/simd/math.h"
#include "ops/sampling.h"

namespace lapidary {
namespace {

// Elements per block. Blocks per vocabulary bound the topK that is fast (1,024 of 262,144), elements per block what is
// read again around each candidate, and a block's end costs one horizontal maximum: 256 is 16 vectors of AVX-512.
constexpr int kBlock = kChunk;
constexpr float kInfinity = __builtin_inff();

inline int64_t block_count(int64_t vocabulary) { return (vocabulary + kBlock - 1) / kBlock; }

// x = logits + bias of one row. Lanes past n are not to be used.
template <DType kDtype>
struct LogitRow {
  const unsigned char* logits;
  const float* bias;  // may be null
  int64_t vocabulary;

  LAPIDARY_MEMBER_INLINE F32 load(int64_t i, int n) const {
    F32 x;
    if constexpr (kDtype == DType::f32) {
      const float* p = reinterpret_cast<const float*>(logits) + i;
      x = n == kLanes ? simd::load(p) : simd::load_first(p, n);
    } else {
      const uint16_t* p = reinterpret_cast<const uint16_t*>(logits) + i;
      x = n == kLanes ? simd::load_bf16(p) : simd::load_bf16_first(p, n);
    }
    if (bias != nullptr) x = simd::add(x, n == kLanes ? simd::load(bias + i) : simd::load_first(bias + i, n));
    return simd::add(x, simd::zero());  // −0 becomes 0, its equal
  }
};

template <DType kDtype>
LogitRow<kDtype> logit_row(const Call& call, int64_t row) {
  const TensorView& logits = call.in[SampleInput::logits];
  const float* bias = nullptr;
  if (call.op == OpId::sample && call.in[SampleInput::bias].present()) {
    const TensorView& view = call.in[SampleInput::bias];
    bias = view.as<float>() + (view.dims[0] == 1 ? 0 : row * view.strides[0]);
  }
  return {logits.data + row * logits.strides[0] * info(kDtype).block_bytes, bias, logits.dims[1]};
}

// The largest x of a block, −∞ where all are NaN.
template <DType kDtype>
float block_maximum(const LogitRow<kDtype>& row, int64_t block) {
  const int64_t begin = block * kBlock;
  const F32 lowest = simd::set1(-kInfinity);
  F32 max0 = lowest, max1 = lowest;
  if (begin + kBlock <= row.vocabulary) {
    for (int64_t i = begin; i < begin + kBlock; i += 2 * kLanes) {
      max0 = simd::max(row.load(i, kLanes), max0);
      max1 = simd::max(row.load(i + kLanes, kLanes), max1);
    }
  } else {
    for (int64_t i = begin; i < row.vocabulary; i += kLanes) {
      const int n = lanes_at(i, row.vocabulary);
      const F32 x = simd::select(simd::less(simd::iota(), simd::set1_i32(n)), row.load(i, n), lowest);
      max0 = simd::max(x, max0);
    }
  }
  return simd::reduce_max(simd::max(max0, max1));
}

inline float row_maximum(const float* block_max, int64_t blocks) {
  F32 largest = simd::set1(block_max[0]);
  int64_t i = 0;
  for (; i + kLanes <= blocks; i += kLanes) largest = simd::max(simd::load(block_max + i), largest);
  float result = simd::reduce_max(largest);
  for (; i < blocks; ++i) result = block_max[i] > result ? block_max[i] : result;
  return result;
}

// The first index of the row's maximum; 0 where all are NaN.
template <DType kDtype>
int32_t first_index_of_maximum(const LogitRow<kDtype>& row, const float* block_max, int64_t blocks) {
  const float largest = row_maximum(block_max, blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    if (block_max[block] != largest) continue;
    const int64_t end = block * kBlock + kBlock < row.vocabulary ? block * kBlock + kBlock : row.vocabulary;
    for (int64_t i = block * kBlock; i < end; i += kLanes) {
      const int n = lanes_at(i, end);
      float x[kLanes];
      simd::store(x, row.load(i, n));
      for (int lane = 0; lane < n; ++lane) {
        if (x[lane] == largest) return int32_t(i + lane);
      }
    }
  }
  return 0;
}

// w = e^((x − max) / temperature), for a finite maximum.
struct Weigher {
  float max, inverse_temperature;

  LAPIDARY_MEMBER_INLINE F32 weights(F32 x) const {
    return simd::exp(simd::mul(simd::sub(x, simd::set1(max)), simd::set1(inverse_temperature)));
  }
};

// The weights of a block, 0 for NaN. Returns the elements of the block.
template <DType kDtype>
int block_weights(const LogitRow<kDtype>& row, const Weigher& weigher, int64_t block, float* weights) {
  const int64_t begin = block * kBlock;
  const int64_t end = begin + kBlock < row.vocabulary ? begin + kBlock : row.vocabulary;
  for (int64_t i = begin; i < end; i += kLanes) {
    const F32 x = simd::max(row.load(i, lanes_at(i, end)), simd::set1(-kInfinity));  // NaN becomes −∞
    simd::store(weights + (i - begin), weigher.weights(x));
  }
  return int(end - begin);
}

// Appends every x ≥ bound, in order of id.
template <DType kDtype>
void gather(const LogitRow<kDtype>& row, const float* block_max, int64_t blocks, float bound, Candidates& candidates) {
  const F32 bounds = simd::set1(bound);
  int64_t count = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (block_max[block] < bound) continue;
    const int64_t end = block * kBlock + kBlock < row.vocabulary ? block * kBlock + kBlock : row.vocabulary;
    for (int64_t i = block * kBlock; i < end; i += kLanes) {
      const int n = lanes_at(i, end);
      const F32 x = row.load(i, n);
      if (!simd::any(simd::less_equal(bounds, x))) continue;
      float lanes[kLanes];
      simd::store(lanes, x);
      for (int lane = 0; lane < n; ++lane) {
        candidates.x[count] = lanes[lane];
        candidates.id[count] = int32_t(i + lane);
        count += lanes[lane] >= bound;
      }
    }
  }
  candidates.count = count;
}

// The k largest of a row whose largest is `max`, in order of id; fewer where there are not as many numbers. Returns a lower
// bound of them.
template <DType kDtype>
float find_top(const LogitRow<kDtype>& row, const float* block_max, int64_t blocks, float max, int64_t k,
               Candidates& candidates) {
  float bound = -kInfinity;
  if (k <= blocks) bound = find_cutoff({block_max, nullptr, blocks}, bound, max, double(k)).x;
  gather(row, block_max, blocks, bound, candidates);
  if (candidates.count > k) {
    keep_best(candidates, find_cutoff({candidates.x, nullptr, candidates.count}, bound, max, double(k)));
  }
  return bound;
}

inline void weigh(const Weigher& weigher, Candidates& candidates) {
  for (int64_t i = 0; i < candidates.count; i += kLanes) {
    const int n = lanes_at(i, candidates.count);
    simd::store_first(candidates.weight + i, weigher.weights(simd::load_first(candidates.x + i, n)), n);
  }
}

// A lower bound of the x whose weight is `weight` in (0, 1]: the power of two below the weight halved once more, so
// that no rounding can lift it above.
inline float bound_of_weight(const Weigher& weigher, double weight) {
  const int exponent = int(__builtin_bit_cast(uint64_t, weight) >> 52) - 1023;
  return weigher.max + float(exponent - 1) * 0x1.62e43p-1f / weigher.inverse_temperature;
}

}  // namespace
}  // namespace lapidary
