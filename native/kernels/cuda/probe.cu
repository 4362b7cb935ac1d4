// probe: what this GPU can do at most. Contract: ops/probe.h. A multiprocessor is what a thread is on the CPU: the output has a number
// for each.
//
//   read       blocks share the buffer, 16 bytes per lane at a time, past L1
//   fma_f32    f32 fused multiply-adds
//   dot_i8     dp4a
//   dot_bf16   mma.sync m16n8k16 of bf16: bf16 products have no other fast way
// The tile kinds are AMX's and report 0.
#include "kernels/cuda/launch.h"
#include "ops/probe.h"

namespace lapidary::cuda {
namespace {

struct ProbeArguments {
  const unsigned char* buffer;
  int64_t bytes, repetitions;
  ProbeKind kind;
  float* operations;  // one per block
  float* sink;        // written if the work gave a value that it cannot give
  int blocks;
};

// Threads of a block, and accumulators of each: with 2 · 512 threads a multiprocessor has 32 warps with 12 chains each, which hides 6
// cycles of latency on 4 schedulers many times over.
static constexpr int kProbeThreads = 512;

struct Probe {
  using Params = ProbeArguments;
  static constexpr int kThreads = kProbeThreads, kMinBlocks = 2;

  static LAPIDARY_DEVICE float read(const Params& p, float& operations) {
    // Shares in multiples of 4 KB, but for the end of the buffer.
    const int64_t pages = (p.bytes + 4095) / 4096, block = dev::block_index_x();
    const int64_t begin = pages * block / p.blocks * 4096;
    int64_t end = pages * (block + 1) / p.blocks * 4096;
    if (end > p.bytes) end = p.bytes;
    operations = float(end > begin ? end - begin : 0);
    uint32_t sum = 0;
    for (int64_t r = 0; r < p.repetitions; ++r) {
      for (int64_t at = begin + dev::thread_index() * 16; at < end; at += kThreads * 16) {
        if (at + 16 <= end) {
          const dev::Words4 v = dev::load_volatile(reinterpret_cast<const dev::Words4*>(p.buffer + at));
          sum += v.word[0] ^ v.word[1] ^ v.word[2] ^ v.word[3];
        } else {
          for (int64_t i = at; i < end; ++i) sum += dev::load(p.buffer + i);
        }
      }
    }
    return float(sum);
  }

  static LAPIDARY_DEVICE float fma(const Params& p) {
    float sums[kProbeAccumulators];
    for (float& sum : sums) sum = 1;
    const float x = p.repetitions < 0 ? 2.0f : 0.5f, y = p.repetitions < 0 ? 3.0f : 0.25f;
#pragma unroll 1
    for (int64_t r = 0; r < p.repetitions; ++r) {
#pragma unroll
      for (float& sum : sums) sum = dev::fma(sum, x, y);
    }
    float total = 0;
    for (float sum : sums) total += sum;
    return total;
  }

  static LAPIDARY_DEVICE float dot(const Params& p) {
    int32_t sums[kProbeAccumulators];
    for (int32_t& sum : sums) sum = 0;
#pragma unroll 1
    for (int64_t r = 0; r < p.repetitions; ++r) {
      // An operand that depends on the sum: neither can be hoisted.
#pragma unroll
      for (int32_t& sum : sums) sum = dev::dot4_i8(uint32_t(sum) | 0x01010101u, 0x01010101u, sum);
    }
    int32_t total = 0;
    for (int32_t sum : sums) total ^= sum;
    return float(total);
  }

  static LAPIDARY_DEVICE float mma(const Params& p) {
    constexpr int kChains = 6;
    float sums[kChains][4] = {};
    const uint32_t a[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
#pragma unroll 1
    for (int64_t r = 0; r < p.repetitions; ++r) {
#pragma unroll
      for (int i = 0; i < 2 * kChains; ++i) dev::mma_bf16(sums[i % kChains], a, 0x3f803f80u, 0x3f803f80u);
    }
    float total = 0;
    for (const auto& sum : sums) total += sum[0] + sum[1] + sum[2] + sum[3];
    return total;
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    constexpr float kOperations = 2.0f * kProbeAccumulators;
    float operations = 0, result = 0;
    switch (p.kind) {
      case ProbeKind::read: result = read(p, operations); break;
      case ProbeKind::fma_f32:
        operations = kOperations * kThreads;
        result = fma(p);
        break;
      case ProbeKind::dot_i8:
        operations = 4 * kOperations * kThreads;
        result = dot(p);
        break;
      case ProbeKind::dot_bf16:
        operations = kOperations * 16 * 8 * 16 * (kThreads / dev::kWarp);
        result = mma(p);
        break;
      default: break;
    }
    if (result == -1.0f)
      dev::store(p.sink, result);  // keeps the work: sums are never negative, the compiler cannot know
    if (dev::thread_index() == 0) dev::store(p.operations + dev::block_index_x(), operations);
  }
};

void launch_probe(const Call& call, LaunchContext& context) {
  const TensorView& buffer = call.in[0];
  const auto& params = call.params_as<ProbeParams>();
  ProbeArguments p = {};
  p.buffer = buffer.data;
  p.bytes = element_count(buffer);
  p.repetitions = params.repetitions;
  p.kind = params.kind;
  p.operations = call.out[0].as<float>();
  p.sink = p.operations;
  p.blocks = int(call.out[0].dims[0]);
  launch<Probe>(context, {p.blocks}, 0, p);
}

}  // namespace

LAPIDARY_CUDA_KERNELS(probe, {OpId::probe, launch_probe})

}  // namespace lapidary::cuda
