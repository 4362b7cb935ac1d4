// f32_products.h: how prefill multiplies in f32: one element of K or V, widened, times a vector of rows.
//
// A Products type says what a 4-byte step of a sum is, and prefill.h is written once over it:
//   kPerStep          elements of head_dim (for scores) or keys (for values) that one step covers
//   kUnit             exponents are scores times this: 1 for e^x, log2 e for 2^x
//   exponential, tanh at the accuracy that the weights are kept in
//   multiply_add      a step: acc + broadcast(a) · b
//   place_query       a row of q as steps
//   place_keys        rows of K as steps along head_dim, in place or converted into a buffer
//   place_values      rows of V as steps along keys
//   store_weights     the weights of kPerStep keys as one step
#pragma once
#include "kernels/cpu/flash_attention/kv_reader.h"
#include "kernels/cpu/simd/math.h"

namespace lapidary {
namespace {
namespace attention {

using simd::F32;
using simd::kLanes;

// kLanes elements, or the first n of them, as f32.
template <DType kType>
LAPIDARY_INLINE F32 widen(const unsigned char* p) {
  if constexpr (kType == DType::f32) return simd::load(reinterpret_cast<const float*>(p));
  if constexpr (kType == DType::bf16) return simd::load_bf16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (kType == DType::f16) return simd::load_f16(reinterpret_cast<const uint16_t*>(p));
  if constexpr (kType == DType::i8) return simd::load_i8(reinterpret_cast<const int8_t*>(p));
}
template <DType kType>
LAPIDARY_INLINE F32 widen_first(const unsigned char* p, int n) {
  if constexpr (kType == DType::f32) return simd::load_first(reinterpret_cast<const float*>(p), n);
  if constexpr (kType == DType::bf16) return simd::load_bf16_first(reinterpret_cast<const uint16_t*>(p), n);
  if constexpr (kType == DType::f16) return simd::load_f16_first(reinterpret_cast<const uint16_t*>(p), n);
  if constexpr (kType == DType::i8) {
    int8_t elements[kLanes] = {};
    memcpy(elements, p, size_t(n));
    return simd::load_i8(elements);
  }
}

template <DType kType>
LAPIDARY_INLINE void widen_row(const unsigned char* from, float* to, int count) {
  constexpr int kBytes = kType == DType::f32 ? 4 : kType == DType::i8 ? 1 : 2;
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) simd::store(to + i, widen<kType>(from + i * kBytes));
  if (i < count) simd::store_first(to + i, widen_first<kType>(from + i * kBytes, count - i), count - i);
}

template <DType kType>
static void widen_rows(const unsigned char* const* from, int rows, int elements, float* to, int stride) {
  for (int i = 0; i < rows; ++i) widen_row<kType>(from[i], to + int64_t(i) * stride, elements);
}

struct F32Products {
  static constexpr int kPerStep = 1;
  static constexpr float kUnit = 1.f;
  using Vector = F32;

  LAPIDARY_MEMBER_INLINE static F32 exponential(F32 x) { return simd::exp(x); }
  LAPIDARY_MEMBER_INLINE static F32 tanh(F32 x) { return simd::tanh(x); }
  LAPIDARY_MEMBER_INLINE static Vector broadcast(const float* p) { return simd::set1(*p); }
  LAPIDARY_MEMBER_INLINE static Vector load(const float* p) { return simd::load(p); }
  LAPIDARY_MEMBER_INLINE static F32 multiply_add(F32 acc, Vector a, Vector b) { return simd::fma(a, b, acc); }

  LAPIDARY_MEMBER_INLINE static void place_query(const unsigned char* row, DType dtype, int head_dim, float* steps) {
    if (dtype == DType::f32) {
      widen_row<DType::f32>(row, steps, head_dim);
    } else {
      widen_row<DType::bf16>(row, steps, head_dim);
    }
  }

  // Rows converted into a buffer lie a cache line further apart than they are long: head_dim is often a power of two,
  // and a column of V would then fall into a few sets of L1.
  LAPIDARY_MEMBER_INLINE static int buffer_stride(int head_dim) { return head_dim + 16; }

  static void place(const unsigned char* const* from, DType dtype, int count, int head_dim, float* buffer,
                    const float** steps) {
    const int stride = buffer_stride(head_dim);
    switch (dtype) {
      case DType::f32:
        for (int i = 0; i < count; ++i) steps[i] = reinterpret_cast<const float*>(from[i]);
        return;
      case DType::bf16: widen_rows<DType::bf16>(from, count, head_dim, buffer, stride); break;
      case DType::f16: widen_rows<DType::f16>(from, count, head_dim, buffer, stride); break;
      default: widen_rows<DType::i8>(from, count, head_dim, buffer, stride); break;
    }
    for (int i = 0; i < count; ++i) steps[i] = buffer + int64_t(i) * stride;
  }
  LAPIDARY_MEMBER_INLINE static void place_keys(const KeyRows& rows, DType dtype, int count, int head_dim,
                                                float* buffer, const float** steps) {
    place(rows.keys, dtype, count, head_dim, buffer, steps);
  }
  LAPIDARY_MEMBER_INLINE static void place_values(const KeyRows& rows, DType dtype, int count, int head_dim,
                                                  float* buffer, const float** steps) {
    place(rows.values, dtype, count, head_dim, buffer, steps);
  }

  LAPIDARY_MEMBER_INLINE static void store_weights(float* step, const F32 (&weights)[kPerStep]) {
    simd::store(step, weights[0]);
  }
};

}  // namespace attention
}  // namespace
}  // namespace lapidary
