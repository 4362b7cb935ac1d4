// probe_avx512_bf16.inl.h: probe with vdpbf16ps. Contract: ops/probe.h.
#include "kernels/cpu/probe/bf16_loop.h"

namespace lapidary {
namespace {

static void probe(const Call& call, Team& team) {
  probe_with(call, team, [](ProbeKind kind, int64_t repetitions, float& operations) {
    return kind == ProbeKind::dot_bf16 ? probe_dot_bf16(repetitions, operations) : 0.f;
  });
}

static const Kernel kKernels[] = {{OpId::probe, probe, nullptr}};

}  // namespace
}  // namespace lapidary
