// probe/loops.h: the loops of probe that every instruction set has. Contract: ops/probe.h.
#pragma once
#include "kernels/cpu/kernel.h"
#include "ops/probe.h"

namespace lapidary {
namespace {

// Reads [begin, end) once: the sum of all bytes as 32-bit lanes, four streams of loads apart.
static int64_t probe_read(const unsigned char* begin, const unsigned char* end) {
  simd::I32 sums[4] = {simd::zero_i32(), simd::zero_i32(), simd::zero_i32(), simd::zero_i32()};
  constexpr int64_t kVector = int64_t(simd::kLanes) * 4;
  for (; end - begin >= 4 * kVector; begin += 4 * kVector) {
    for (int i = 0; i < 4; ++i) {
      sums[i] = simd::add(sums[i], simd::load_i32(reinterpret_cast<const int32_t*>(begin + i * kVector)));
    }
  }
  int32_t lanes[simd::kLanes];
  simd::store_i32(lanes, simd::add(simd::add(sums[0], sums[1]), simd::add(sums[2], sums[3])));
  int64_t total = 0;
  for (int32_t lane : lanes) total += lane;
  return total;
}

// The compiler must neither hoist the multiplication out of the loop nor see that its operands never change.
#define LAPIDARY_OPAQUE(vector) asm volatile("" : "+m"(vector))

static float probe_fma(int64_t repetitions) {
  simd::F32 accumulators[kProbeAccumulators];
  for (auto& accumulator : accumulators) accumulator = simd::set1(1.f);
  simd::F32 x = simd::set1(0.5f), y = simd::set1(0.25f);
  LAPIDARY_OPAQUE(x);
  LAPIDARY_OPAQUE(y);
  for (int64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kProbeAccumulators; ++i) accumulators[i] = simd::fma(accumulators[i], x, y);
  }
  simd::F32 sum = simd::zero();
  for (auto& accumulator : accumulators) sum = simd::add(sum, accumulator);
  return simd::reduce_add(sum);
}

// The fastest products of bytes: sums of one repetition's kProbeAccumulators accumulators, and what is done with one.
#if LAPIDARY_SIMD_BYTE_MATRICES
using DotAccumulator = simd::PairSum;  // two vectors, each with twice the products of a dot product
static constexpr int kDotAccumulators = kProbeAccumulators / 2;
static constexpr float kDotOperations = 2.f * 8 * kProbeAccumulators * simd::kLanes;
LAPIDARY_INLINE DotAccumulator dot_zero() { return simd::pair_start(0, 0); }
LAPIDARY_INLINE void dot_add(DotAccumulator& sum, simd::Bytes w, simd::Bytes x) { simd::pair_add(sum, w, w, x); }
LAPIDARY_INLINE simd::I32 dot_lanes(const DotAccumulator& sum) { return simd::pair_lanes(sum, 0); }
#else
using DotAccumulator = simd::I32;
static constexpr int kDotAccumulators = kProbeAccumulators;
static constexpr float kDotOperations = 2.f * 4 * kProbeAccumulators * simd::kLanes;
LAPIDARY_INLINE DotAccumulator dot_zero() { return simd::zero_i32(); }
LAPIDARY_INLINE void dot_add(DotAccumulator& sum, simd::Bytes w, simd::Bytes x) { sum = simd::dot_u7(sum, w, x); }
LAPIDARY_INLINE simd::I32 dot_lanes(const DotAccumulator& sum) { return sum; }
#endif

static float probe_dot(int64_t repetitions) {
  DotAccumulator accumulators[kDotAccumulators];
  for (auto& accumulator : accumulators) accumulator = dot_zero();
  unsigned char ones[4 * simd::kLanes];
  for (auto& one : ones) one = 1;
  simd::Bytes w = simd::load_bytes(ones), x = simd::load_bytes(ones);
  LAPIDARY_OPAQUE(w);
  LAPIDARY_OPAQUE(x);
  for (int64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kDotAccumulators; ++i) dot_add(accumulators[i], w, x);
  }
  simd::I32 sum = simd::zero_i32();
  for (auto& accumulator : accumulators) sum = simd::add(sum, dot_lanes(accumulator));
  return simd::reduce_add(simd::to_f32(sum));
}

// `special(kind, repetitions, operations)` serves the kinds that only some instruction sets have, and returns a value
// that the work flows into; it leaves operations at 0 for those it lacks.
template <class Special>
static void probe_with(const Call& call, Team& team, Special special) {
  const auto& params = call.params_as<ProbeParams>();
  const TensorView& buffer = call.in[0];
  float operations = 0;
  float result = 0;
  switch (params.kind) {
    case ProbeKind::read: {
      const Range range = team_range(team, buffer.dims[0], 4096);
      int64_t total = 0;
      for (int64_t r = 0; r < params.repetitions; ++r)
        total += probe_read(buffer.data + range.begin, buffer.data + range.end);
      operations = float(range.end - range.begin);
      result = float(total);
      break;
    }
    case ProbeKind::fma_f32:
      operations = 2.f * kProbeAccumulators * simd::kLanes;
      result = probe_fma(params.repetitions);
      break;
    case ProbeKind::dot_i8:
      operations = kDotOperations;
      result = probe_dot(params.repetitions);
      break;
    default: result = special(params.kind, params.repetitions, operations);
  }
  asm volatile("" : : "m"(result));  // keeps the work
  call.out[0].as<float>()[team.thread] = operations;
}

}  // namespace
}  // namespace lapidary
