// qk_norm_rope: QK-norm (Dehghani et al. 2023, arXiv 2302.05442), rotary position embedding (Su et al. 2021, arXiv
// 2104.09864, in the half-split form) and KV-cache write in one pass. Formula and contract: ops/qk_norm_rope.h.
//
// Algorithm
//   Work items are rows (one head of one token) in the order q heads, k heads, v heads within a token; a thread takes
//   one contiguous run of them, so that decode (one token) still spreads over the team. The sines and cosines of a
//   token are computed once per thread that touches it and shared by all its heads: 0.2 µs for headDim 256 on Zen 5,
//   less than a barrier and a cold line from another core.
//
//   angle = position · frequency[i] in double; n = round(angle · 2/π); r = angle − n · π/2 with π/2 in two parts (Cody
//   and Waite 1980), the first of 33 bits, so that n · part is exact to n < 2²⁰; then Taylor polynomials of sin r and
//   cos r on |r| ≤ π/4, of which the quadrant n mod 4 picks and signs two. Absolute errors: truncation 2⁻³²; frequency
//   and angle 64 · 2⁻⁵³ · angle; rounding to f32 2⁻²⁵. No libm and no fused operation: the same bits on every ISA.
//
//   A row, with T = f32|bf16 going in and f32|bf16|f16 coming out (i8 goes through an f32 row):
//
//     pass 1   x ───────────────────────────────► Σx²        16 or fewer partial sums, folded once
//     pass 2   x[0 … p) ──► y ─┬─ rotate ─► z[0 … p)         p = rotated pairs; tables of cos, sin and the norm weight
//              x[h … h+p) ► y ─┘        └─► z[h … h+p)       h = headDim / 2
//              the rest ──► y ────────────► z
//
// Cost: a row is read twice, the second time from L1, and written once. Per token of Gemma 3 4B in bf16 (8 + 2 · 4
// heads of 256): 8 KiB read, 8 KiB written, 29 kFLOP. One thread of Zen 5 takes 0.76 µs for it with AVX-512 and 1.3 µs
// with AVX2, for one token as for each of 512; rounding to bf16 in integer operations is the largest part.
#pragma once
#include <cstring>

#include "kernels/cpu/kernel.h"
#include "ops/qk_norm_rope.h"

namespace lapidary {
namespace {

using simd::F32;
using simd::kLanes;

// ── elements of any float dtype; n is kLanes in full blocks, where the test folds away ────────────────────────────
template <DType kDtype>
LAPIDARY_INLINE F32 load_elements(const unsigned char* row, int64_t i, int n) {
  if constexpr (kDtype == DType::f32) {
    const float* p = reinterpret_cast<const float*>(row) + i;
    return n == kLanes ? simd::load(p) : simd::load_first(p, n);
  } else {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(row) + i;
    if constexpr (kDtype == DType::bf16) return n == kLanes ? simd::load_bf16(p) : simd::load_bf16_first(p, n);
    return n == kLanes ? simd::load_f16(p) : simd::load_f16_first(p, n);
  }
}

template <DType kDtype>
LAPIDARY_INLINE void store_elements(unsigned char* row, int64_t i, F32 x, int n) {
  if constexpr (kDtype == DType::f32) {
    float* p = reinterpret_cast<float*>(row) + i;
    n == kLanes ? simd::store(p, x) : simd::store_first(p, x, n);
  } else {
    uint16_t* p = reinterpret_cast<uint16_t*>(row) + i;
    if constexpr (kDtype == DType::bf16) {
      n == kLanes ? simd::store_bf16(p, x) : simd::store_bf16_first(p, x, n);
    } else {
      n == kLanes ? simd::store_f16(p, x) : simd::store_f16_first(p, x, n);
    }
  }
}

// ── a thread's tables ─────────────────────────────────────────────────────────────────────────────────────────────
struct Tables {
  double* frequency;  // [pairs]
  float* cosine;      // [pairs] of the current token
  float* sine;
  float* q_weight;  // [headDim] weightBias + w; ones where there is no weight: a multiplication by one is exact
  float* k_weight;
  float* ones;
  float* row;  // [headDim] of an i8 row before it is quantised
};

int64_t padded_head_dim(const Call& call) { return (call.in[QkNormRopeInput::q].dims[2] + 31) & ~int64_t(31); }
size_t bytes_per_thread(const Call& call) { return size_t(padded_head_dim(call)) * (4 + 2 + 2 + 4 * 4); }

Tables place_tables(const Call& call, const Team& team) {
  const int64_t dim = padded_head_dim(call);
  unsigned char* base = team.scratch + bytes_per_thread(call) * size_t(team.thread);
  Tables tables;
  tables.frequency = reinterpret_cast<double*>(base);
  tables.cosine = reinterpret_cast<float*>(base + dim * 4);
  tables.sine = tables.cosine + dim / 2;
  tables.q_weight = tables.sine + dim / 2;
  tables.k_weight = tables.q_weight + dim;
  tables.ones = tables.k_weight + dim;
  tables.row = tables.ones + dim;
  return tables;
}

template <DType kDtype>
void fill_weight_from(const TensorView& weight, float bias, float* to) {
  for (int64_t i = 0; i < weight.dims[0]; i += kLanes) {
    const int n = int(weight.dims[0] - i < kLanes ? weight.dims[0] - i : kLanes);
    simd::store_first(to + i, simd::add(simd::set1(bias), load_elements<kDtype>(weight.data, i, n)), n);
  }
}

void fill_weight(const TensorView& weight, float bias, int64_t head_dim, float* to) {
  if (!weight.present()) {
    for (int64_t i = 0; i < head_dim; ++i) to[i] = 1;
  } else if (weight.dtype == DType::f32) {
    fill_weight_from<DType::f32>(weight, bias, to);
  } else if (weight.dtype == DType::bf16) {
    fill_weight_from<DType::bf16>(weight, bias, to);
  } else {
    fill_weight_from<DType::f16>(weight, bias, to);
  }
}

// step^i, as a product of at most 15 steps and of i / 16 strides, so that rounding errors stay below 64 · 2⁻⁵³.
void fill_frequencies(const QkNormRopeParams& params, double* frequency) {
  double block = 1;
  for (int base = 0; base < params.rotated_pairs; base += 16, block *= params.frequency_stride) {
    double value = block;
    for (int i = base; i < base + 16 && i < params.rotated_pairs; ++i, value *= params.frequency_step) {
      frequency[i] = value;
    }
  }
}

// A plain loop without calls or branches, which the compiler turns into vectors of doubles; choices are made on bits.
void fill_rotation(double position, int pairs, const double* __restrict frequency, float* __restrict cosine,
                   float* __restrict sine) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
  constexpr double kHalfPiHigh = 0x1.921fb544p0, kHalfPiLow = 0x1.0b4611a626331p-34;
  constexpr double kRounder =
      0x1.8p52;  // adding and subtracting it rounds to an integer, left in the low bits of the sum
  for (int i = 0; i < pairs; ++i) {
    const double angle = position * frequency[i];
    const double shifted = angle * kTwoOverPi + kRounder;
    const double quarters = shifted - kRounder;
    const double r = (angle - quarters * kHalfPiHigh) - quarters * kHalfPiLow;
    const double z = r * r;
    const double s9 = 1.0 / 362880 + z * (-1.0 / 39916800), c8 = 1.0 / 40320 + z * (-1.0 / 3628800);
    const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * s9)));
    const double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * c8)));
    const uint64_t quadrant = __builtin_bit_cast(uint64_t, shifted);
    const uint64_t s_bits = __builtin_bit_cast(uint64_t, s), c_bits = __builtin_bit_cast(uint64_t, c);
    const uint64_t swapped = (s_bits ^ c_bits) & (0 - (quadrant & 1));
    cosine[i] = float(__builtin_bit_cast(double, c_bits ^ swapped ^ ((quadrant + 1) >> 1 << 63)));
    sine[i] = float(__builtin_bit_cast(double, s_bits ^ swapped ^ (quadrant >> 1 << 63)));
  }
}

// ── one row ───────────────────────────────────────────────────────────────────────────────────────────────────────
// 1 / √(mean(x²) + eps)
template <DType kFrom>
float inverse_rms(const unsigned char* row, int64_t head_dim, float eps) {
  F32 sum0 = simd::zero(), sum1 = simd::zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= head_dim; i += 2 * kLanes) {
    const F32 x0 = load_elements<kFrom>(row, i, kLanes), x1 = load_elements<kFrom>(row, i + kLanes, kLanes);
    sum0 = simd::fma(x0, x0, sum0);
    sum1 = simd::fma(x1, x1, sum1);
  }
  for (; i < head_dim; i += kLanes) {
    const F32 x = load_elements<kFrom>(row, i, int(head_dim - i < kLanes ? head_dim - i : kLanes));
    sum0 = simd::fma(x, x, sum0);
  }
  const float mean = simd::reduce_add(simd::add(sum0, sum1)) / float(head_dim);
  float result[kLanes];
  simd::store(result, simd::div(simd::set1(1), simd::sqrt(simd::set1(mean + eps))));
  return result[0];
}

struct RowTransform {
  float scale;          // 1 / rms, or 1
  const float* weight;  // [headDim]
  const float* cosine;
  const float* sine;
  int64_t pairs, half, head_dim;
};

template <DType kFrom>
LAPIDARY_INLINE F32 normalised(const unsigned char* from, const RowTransform& t, int64_t i, int n) {
  const F32 weight = n == kLanes ? simd::load(t.weight + i) : simd::load_first(t.weight + i, n);
  return simd::mul(simd::mul(load_elements<kFrom>(from, i, n), simd::set1(t.scale)), weight);
}

template <DType kFrom, DType kTo>
LAPIDARY_INLINE void rotate_block(const unsigned char* from, unsigned char* to, const RowTransform& t, int64_t i,
                                  int n) {
  const F32 low = normalised<kFrom>(from, t, i, n), high = normalised<kFrom>(from, t, t.half + i, n);
  const F32 cosine = n == kLanes ? simd::load(t.cosine + i) : simd::load_first(t.cosine + i, n);
  const F32 sine = n == kLanes ? simd::load(t.sine + i) : simd::load_first(t.sine + i, n);
  store_elements<kTo>(to, i, simd::fnma(high, sine, simd::mul(low, cosine)), n);
  store_elements<kTo>(to, t.half + i, simd::fma(low, sine, simd::mul(high, cosine)), n);
}

template <DType kFrom, DType kTo>
LAPIDARY_INLINE void keep_range(const unsigned char* from, unsigned char* to, const RowTransform& t, int64_t i,
                                int64_t end) {
  for (; i + kLanes <= end; i += kLanes) store_elements<kTo>(to, i, normalised<kFrom>(from, t, i, kLanes), kLanes);
  if (i < end) store_elements<kTo>(to, i, normalised<kFrom>(from, t, i, int(end - i)), int(end - i));
}

template <DType kFrom, DType kTo>
void transform_row(const unsigned char* from, unsigned char* to, const RowTransform& t) {
  if (t.pairs == 0) return keep_range<kFrom, kTo>(from, to, t, 0, t.head_dim);
  int64_t i = 0;
  for (; i + kLanes <= t.pairs; i += kLanes) rotate_block<kFrom, kTo>(from, to, t, i, kLanes);
  if (i < t.pairs) rotate_block<kFrom, kTo>(from, to, t, i, int(t.pairs - i));
  if (t.pairs == t.half) return;
  keep_range<kFrom, kTo>(from, to, t, t.pairs, t.half);
  keep_range<kFrom, kTo>(from, to, t, t.half + t.pairs, t.head_dim);
}

// A row of floats as bytes and a scale. Multiplying by zero finds NaN and infinity, which the maximum may pass over.
void quantise_row(const float* row, int64_t head_dim, int8_t* bytes, float* scale) {
  constexpr float kSmallest = 0x1p-100f;  // below it 127 / largest may overflow
  F32 largest_lanes = simd::zero(), poison = simd::zero();
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    const F32 x = simd::load_first(row + i, int(head_dim - i < kLanes ? head_dim - i : kLanes));
    largest_lanes = simd::max(simd::abs(x), largest_lanes);
    poison = simd::fma(x, simd::zero(), poison);
  }
  const float largest = simd::reduce_max(largest_lanes);
  const bool finite = simd::reduce_add(poison) == 0;
  *scale = !finite ? __builtin_nanf("") : largest < kSmallest ? 0 : largest / 127;
  if (!finite || largest < kSmallest) {
    memset(bytes, 0, size_t(head_dim));
    return;
  }
  const F32 inverse = simd::set1(127 / largest);
  int64_t i = 0;
  for (; i + kLanes <= head_dim; i += kLanes) {
    simd::store_i8(bytes + i, simd::to_i32(simd::mul(simd::load(row + i), inverse)));
  }
  if (i == head_dim) return;
  int8_t tail[kLanes];
  simd::store_i8(tail, simd::to_i32(simd::mul(simd::load_first(row + i, int(head_dim - i)), inverse)));
  memcpy(bytes + i, tail, size_t(head_dim - i));
}

// ── one token's heads of one tensor ───────────────────────────────────────────────────────────────────────────────
struct HeadJob {
  const TensorView& from;
  const TensorView& to;      // [tokens, heads, headDim], or a cache
  const TensorView* scales;  // of an i8 cache
  bool norm;
  int64_t pairs;
  const float* weight;
};

template <DType kFrom>
void run_head(const HeadJob& job, const Tables& tables, float eps, int64_t token, int64_t head, unsigned char* to,
              float* scale) {
  const int64_t head_dim = job.from.dims[2];
  const unsigned char* from =
      job.from.data + (token * job.from.strides[0] + head * job.from.strides[1]) * info(kFrom).block_bytes;
  const RowTransform t = {job.norm ? inverse_rms<kFrom>(from, head_dim, eps) : 1.f,
                          job.weight,
                          tables.cosine,
                          tables.sine,
                          job.pairs,
                          head_dim / 2,
                          head_dim};
  switch (job.to.dtype) {
    case DType::f32: return transform_row<kFrom, DType::f32>(from, to, t);
    case DType::bf16: return transform_row<kFrom, DType::bf16>(from, to, t);
    case DType::f16: return transform_row<kFrom, DType::f16>(from, to, t);
    default:
      transform_row<kFrom, DType::f32>(from, reinterpret_cast<unsigned char*>(tables.row), t);
      quantise_row(tables.row, head_dim, reinterpret_cast<int8_t*>(to), scale);
  }
}

// slot < 0: the output is [tokens, heads, headDim]. `blank`: zeros instead of a result.
void run_row(const HeadJob& job, const Tables& tables, float eps, int64_t token, int64_t head, int64_t slot,
             bool blank) {
  const TensorView& to = job.to;
  int64_t offset = token * to.strides[0] + head * to.strides[1];
  float* scale = nullptr;
  if (slot >= 0) {
    const int64_t page = slot / to.dims[2], row = slot % to.dims[2];
    offset = page * to.strides[0] + head * to.strides[1] + row * to.strides[2];
    if (job.scales != nullptr) {
      const TensorView& scales = *job.scales;
      scale = scales.as<float>() + page * scales.strides[0] + head * scales.strides[1] + row * scales.strides[2];
    }
  }
  unsigned char* row = to.data + offset * info(to.dtype).block_bytes;
  if (blank) {
    memset(row, 0, size_t(job.from.dims[2] * info(to.dtype).block_bytes));
  } else if (job.from.dtype == DType::f32) {
    run_head<DType::f32>(job, tables, eps, token, head, row, scale);
  } else {
    run_head<DType::bf16>(job, tables, eps, token, head, row, scale);
  }
}

// ── the kernel ────────────────────────────────────────────────────────────────────────────────────────────────────
size_t qk_norm_rope_scratch(const Call& call, int threads) { return bytes_per_thread(call) * size_t(threads); }

void qk_norm_rope(const Call& call, Team& team) {
  using In = QkNormRopeInput;
  const QkNormRopeParams& params = call.params_as<QkNormRopeParams>();
  const TensorView &q = call.in[In::q], &k = call.in[In::k], &v = call.in[In::v], &cache = call.in[In::k_cache];
  const bool cached = cache.present(), quantised = cached && cache.dtype == DType::i8;
  const int64_t tokens = q.dims[0], query_heads = q.dims[1], kv_heads = k.present() ? k.dims[1] : 0;
  const int64_t rows_per_token = query_heads + 2 * kv_heads;
  const Range range = team_range(team, tokens * rows_per_token);
  if (range.begin == range.end) return;

  const Tables tables = place_tables(call, team);
  const int64_t head_dim = q.dims[2], pairs = params.rotated_pairs;
  fill_frequencies(params, tables.frequency);
  fill_weight(call.in[In::q_norm], params.weight_bias, head_dim, tables.q_weight);
  fill_weight(call.in[In::k_norm], params.weight_bias, head_dim, tables.k_weight);
  fill_weight(TensorView(), 0, head_dim, tables.ones);

  const HeadJob q_job = {q, call.out[0], nullptr, call.in[In::q_norm].present(), pairs, tables.q_weight};
  const HeadJob k_job = {k,
                         cached ? cache : call.out[1],
                         quantised ? &call.in[In::k_scales] : nullptr,
                         call.in[In::k_norm].present(),
                         pairs,
                         tables.k_weight};
  const HeadJob v_job = {v,
                         cached ? call.in[In::v_cache] : call.out[2],
                         quantised ? &call.in[In::v_scales] : nullptr,
                         params.value_norm,
                         0,
                         tables.ones};

  for (int64_t item = range.begin; item < range.end;) {
    const int64_t token = item / rows_per_token, first = item % rows_per_token;
    const int64_t end = first + (range.end - item) < rows_per_token ? first + (range.end - item) : rows_per_token;
    item += end - first;

    const int32_t position = pairs > 0 ? call.in[In::positions].as<int32_t>()[token] : 0;
    const bool blank = position < 0;
    if (blank) {
      team_fail(team, Code::kIndexOutOfRange, "qk_norm_rope: positions: expected at least 0, got %lld at token %lld",
                position, token);
    } else {
      fill_rotation(double(position) * params.position_scale, int(pairs), tables.frequency, tables.cosine, tables.sine);
    }
    int64_t slot = -1;
    if (cached) {
      slot = call.in[In::slots].as<int32_t>()[token];
      if (slot < -1 || slot >= cache.dims[0] * cache.dims[2]) {
        team_fail(team, Code::kIndexOutOfRange,
                  "qk_norm_rope: slots: expected -1 or a slot of the cache, got %lld at token %lld", slot, token);
        slot = -1;
      }
    }
    const bool keep = cached ? slot >= 0 && !blank : true;
    for (int64_t row = first; row < end; ++row) {
      if (row < query_heads) {
        run_row(q_job, tables, params.eps, token, row, -1, blank);
      } else if (keep) {
        const bool value = row >= query_heads + kv_heads;
        run_row(value ? v_job : k_job, tables, params.eps, token, row - query_heads - (value ? kv_heads : 0), slot,
                blank);
      }
    }
  }
}

const Kernel kKernels[] = {{OpId::qk_norm_rope, qk_norm_rope, qk_norm_rope_scratch}};

}  // namespace
}  // namespace lapidary
