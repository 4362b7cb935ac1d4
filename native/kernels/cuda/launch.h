// launch.h: what connects a planned call to kernels: a launcher chooses a kernel, a grid and parameters, and queues it on a stream.
//
// Each stem has `<stem>.cu`, which nvcc compiles, and a C++ compiler over the emulation. It exports one table:
//
//   LAPIDARY_CUDA_KERNELS(row_ops, {OpId::rms_norm, launch_rms_norm}, …)
//
// A launcher may not wait for the device, read device memory or allocate: the calls around it are queued too, or captured in a
// graph, where it runs once for many executions. Whatever depends on device data is decided on the device.
#pragma once
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/runtime.h"
#include "core/error_code.h"
#include "ops/call.h"

namespace lapidary::cuda {

// Bad device data, as a kernel reports it. Lies in host memory that the device can write, so that looking at it costs nothing.
struct ErrorRecord {
  uint32_t claimed;
  uint32_t step;
  uint32_t message;  // index into the kernel's messages
  uint32_t unused;
  int64_t first;
  int64_t second;
};

// Passed to kernels by value. The first report of an execution wins and becomes the stream's sticky error. The kernel goes on without
// harm: it skips the piece and leaves defined output.
struct ErrorReporter {
  ErrorRecord* record;
  uint32_t step;
  LAPIDARY_DEVICE void report(uint32_t message, int64_t first, int64_t second) const {
    if (dev::atomic_compare_exchange(&record->claimed, 0u, 1u) != 0) return;
    dev::store(&record->step, step);
    dev::store(&record->message, message);
    dev::store(&record->first, first);
    dev::store(&record->second, second);
  }
};

struct Properties {
  int multiprocessors = 1;
  int compute_capability = 80;  // 10 · major + minor
  int shared_bytes = 0;         // that a block may ask for
  int64_t l2_bytes = 0;
};

static constexpr int kCounters = 16384;

struct LaunchContext {
  cudaStream_t stream = nullptr;
  Properties properties;
  // As many bytes as the kernel's workspace function asked for; 256-byte aligned; contents undefined. Of this call alone: calls of a
  // stream follow one another.
  unsigned char* workspace = nullptr;
  size_t workspace_bytes = 0;
  // kCounters zeros for tickets and locks. A kernel leaves zeros behind (dev::atomic_inc does).
  uint32_t* counters = nullptr;
  ErrorReporter error = {};
  cudaError_t status = cudaSuccess;  // of the first launch that failed
#if !defined(__CUDACC__)
  std::vector<emulation::Range> ranges;  // what the call may touch
#endif
};

using Launcher = void (*)(const Call& call, LaunchContext& context);
using WorkspaceFunction = size_t (*)(const Call& call, const Properties& properties);

struct Kernel {
  OpId op;
  Launcher launch;
  WorkspaceFunction workspace = nullptr;  // null: none
  const char* const* messages = nullptr;  // of ErrorReporter::report; printf formats that take two %lld
  const Code* codes = nullptr;            // of the messages; null: all are ERR_INDEX_OUT_OF_RANGE
};

// What one stem exports.
struct KernelSet {
  const Kernel* kernels;
  int count;
};

#define LAPIDARY_CUDA_KERNELS(stem, ...)                                                                        \
  static const ::lapidary::cuda::Kernel kKernels[] = {__VA_ARGS__};                                             \
  extern "C" {                                                                                                  \
  extern const ::lapidary::cuda::KernelSet lapidary_cuda_##stem;                                                \
  const ::lapidary::cuda::KernelSet lapidary_cuda_##stem = {kKernels, int(sizeof kKernels / sizeof *kKernels)}; \
  }

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

static constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__CUDACC__)

template <class K>
__global__ void __launch_bounds__(K::kThreads, K::kMinBlocks) entry(const __grid_constant__ typename K::Params params) {
  extern __shared__ __align__(128) unsigned char shared[];
  K::run(params, shared);
}

template <class K>
void launch(LaunchContext& context, Grid grid, size_t shared_bytes, const typename K::Params& params,
            int threads = K::kThreads) {
  if (context.status != cudaSuccess || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // More than 48 KB must be asked for; it costs a microsecond, and the answer is kept per function and device by the driver.
  if (shared_bytes > 48 * 1024) {
    context.status = cudaFuncSetAttribute(entry<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (context.status != cudaSuccess) return;
  }
  entry<K>
      <<<dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)), unsigned(threads), shared_bytes, context.stream>>>(
          params);
  context.status = cudaGetLastError();
}

#else

template <class K>
void launch(LaunchContext& context, Grid grid, size_t shared_bytes, const typename K::Params& params,
            int threads = K::kThreads) {
  if (context.status != cudaSuccess || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (threads > K::kThreads || shared_bytes > size_t(context.properties.shared_bytes)) {
    context.status = cudaErrorInvalidValue;
    return;
  }
  emulation::LaunchOptions options;
  options.grid = {int(grid.x), int(grid.y), int(grid.z)};
  options.threads = threads;
  options.shared_bytes = shared_bytes;
  options.ranges = &context.ranges;
  const auto body = [](const void* data, unsigned char* shared) {
    K::run(*static_cast<const typename K::Params*>(data), shared);
  };
  context.status = emulation::launch(context.stream, options, body, &params, sizeof params);
}

#endif

}  // namespace lapidary::cuda
