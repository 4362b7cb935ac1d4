// probe/bf16_loop.h: probe's loop of vdpbf16ps. Contract: ops/probe.h.
#pragma once
#include "kernels/cpu/probe/loops.h"

namespace lapidary {
namespace {

static float probe_dot_bf16(int64_t repetitions, float& operations) {
  simd::F32 accumulators[kProbeAccumulators];
  for (auto& accumulator : accumulators) accumulator = simd::zero();
  simd::Bytes pairs = simd::pack_bf16(simd::set1(0.5f), simd::set1(0.25f));
  LAPIDARY_OPAQUE(pairs);
  for (int64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kProbeAccumulators; ++i) accumulators[i] = simd::dot_bf16(accumulators[i], pairs, pairs);
  }
  operations = 2.f * 2 * kProbeAccumulators * simd::kLanes;
  simd::F32 sum = simd::zero();
  for (auto& accumulator : accumulators) sum = simd::add(sum, accumulator);
  return simd::reduce_add(sum);
}

}  // namespace
}  // namespace lapidary
