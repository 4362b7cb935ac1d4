// probe.h: contract of probe, the op that measures a device's limits.
//
// It does nothing useful on purpose: it reads memory, or repeats one instruction on registers, on every thread of the
// team at once. Whoever enqueues it takes the time and divides (benchmarks/limits.ts): bytes · passes for `read`, and
// for the others operations per repetition and thread as probe_operations() says.
#pragma once
#include <cstdint>

namespace lapidary {

enum class ProbeKind : uint8_t {
  read,       // each thread reads its share of `buffer`, `repetitions` times
  fma_f32,    // fused multiply-adds of f32 vectors
  dot_i8,     // the vocabulary's byte dot product (vpdpbusd, maddubs …)
  dot_bf16,   // vdpbf16ps; devices without it skip
  tile_i8,    // AMX tdpbssd; devices without it skip
  tile_bf16,  // AMX tdpbf16ps; devices without it skip
};

struct ProbeParams {
  ProbeKind kind;
  int64_t repetitions;
};

// Independent accumulators: enough to hide a latency of 6 cycles at two instructions per cycle.
static constexpr int kProbeAccumulators = 12;

}  // namespace lapidary
