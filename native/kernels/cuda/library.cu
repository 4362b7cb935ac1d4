// library.cu: the CUDA library behind abi.h: devices, lanes, execution, and graphs of executions.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/cuda/abi.h"
#include "kernels/cuda/kernel_sets.h"
#include "kernels/cuda/launch.h"
#if !defined(__CUDACC__)
#include "ops/contract.h"
#endif

using lapidary::Call;
using lapidary::OpId;
using lapidary::cuda::ErrorRecord;
using lapidary::cuda::Kernel;
using lapidary::cuda::LaunchContext;

#define RETURN_IF_ERROR(expression)             \
  do {                                          \
    const cudaError_t status_ = (expression);   \
    if (status_ != cudaSuccess) return status_; \
  } while (0)

struct LapidaryCudaLane {
  int device = 0;
  cudaStream_t stream = nullptr;
  lapidary::cuda::Properties properties;
  unsigned char* workspace = nullptr;
  size_t workspace_bytes = 0;
  uint32_t* counters = nullptr;
  ErrorRecord* record = nullptr;     // host memory
  unsigned char* staging = nullptr;  // host memory, pinned; made at first use
};

struct LapidaryCudaReplay {
  cudaEvent_t begun = nullptr, ended = nullptr;  // where replays are timed
  // One captured execution, for one set of addresses.
  struct Entry {
    std::vector<const void*> keys;
    cudaGraphExec_t graph = nullptr;
    uint64_t used = 0;
  };
  // Addresses that are keys are of large tensors, of which a program's caller has a few.
  static constexpr size_t kEntries = 8;
  LapidaryCudaLane* lane = nullptr;
  Entry entries[kEntries];
  uint64_t clock = 0;
};

namespace {

// Two halves, so that copying one by the processor overlaps moving the other.
constexpr size_t kStagingBytes = size_t(8) << 20;
std::atomic<int64_t> graphs{0};
std::atomic<int64_t> replay_nanoseconds{0};

// Read once: a replay is timed from its making on, or never.
bool timing() {
  static const bool asked = [] {
    const char* text = getenv("LAPIDARY_CUDA_TIMING");
    return text && strcmp(text, "1") == 0;
  }();
  return asked;
}

// ── devices ─────────────────────────────────────────────────────────────────────────────────────────────────────────

int driver_version(int* version) {
  *version = 0;
  return cudaDriverGetVersion(version);
}

int device_count(int* count) {
  *count = 0;
  const cudaError_t status = cudaGetDeviceCount(count);
  (void)cudaGetLastError();
  return status;
}

int describe_device(int index, LapidaryCudaDevice* out) {
  *out = {};
  cudaDeviceProp properties;
  RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, index));
  snprintf(out->name, sizeof out->name, "%s", properties.name);
  out->compute_capability = properties.major * 10 + properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  out->memory_bytes = int64_t(properties.totalGlobalMem);
  return 0;
}

int free_memory(int device, int64_t* bytes) {
  *bytes = 0;
  size_t free_bytes = 0, total = 0;
  RETURN_IF_ERROR(cudaSetDevice(device));
  RETURN_IF_ERROR(cudaMemGetInfo(&free_bytes, &total));
  *bytes = int64_t(free_bytes);
  return 0;
}

const char* error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }

int allocate(int device, size_t bytes, void** out) {
  *out = nullptr;
  RETURN_IF_ERROR(cudaSetDevice(device));
  const cudaError_t status = cudaMalloc(out, bytes ? bytes : 1);
  (void)cudaGetLastError();  // out of memory is not sticky
  return status;
}

int release(int device, void* memory) {
  RETURN_IF_ERROR(cudaSetDevice(device));
  return cudaFree(memory);
}

const void* find_kernel(int op) {
  for (int i = 0; i < lapidary::cuda::kernel_set_count; ++i) {
    const lapidary::cuda::KernelSet& set = *lapidary::cuda::kernel_sets[i];
    for (int k = 0; k < set.count; ++k) {
      if (int(set.kernels[k].op) == op) return &set.kernels[k];
    }
  }
  return nullptr;
}

// ── lanes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

void lane_destroy(LapidaryCudaLane* lane) {
  if (!lane) return;
  if (cudaSetDevice(lane->device) == cudaSuccess) {
    if (lane->stream) cudaStreamDestroy(lane->stream);
    cudaFree(lane->workspace);
    cudaFree(lane->counters);
    if (lane->record) cudaFreeHost(lane->record);
    if (lane->staging) cudaFreeHost(lane->staging);
  }
  delete lane;
}

cudaError_t prepare_lane(LapidaryCudaLane& lane) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(cudaSetDevice(lane.device));
  RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, lane.device));
  lane.properties.multiprocessors = properties.multiProcessorCount;
  lane.properties.compute_capability = properties.major * 10 + properties.minor;
  lane.properties.shared_bytes = int(properties.sharedMemPerBlockOptin);
  lane.properties.l2_bytes = properties.l2CacheSize;
  RETURN_IF_ERROR(cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
  constexpr size_t bytes = lapidary::cuda::kCounters * sizeof(uint32_t);
  RETURN_IF_ERROR(cudaMalloc(reinterpret_cast<void**>(&lane.counters), bytes));
  RETURN_IF_ERROR(cudaMemsetAsync(lane.counters, 0, bytes, lane.stream));
  RETURN_IF_ERROR(cudaHostAlloc(reinterpret_cast<void**>(&lane.record), sizeof(ErrorRecord), cudaHostAllocMapped));
  *lane.record = {};
  return cudaStreamSynchronize(lane.stream);
}

int lane_create(int device, LapidaryCudaLane** out) {
  *out = nullptr;
  auto* lane = new (std::nothrow) LapidaryCudaLane();
  if (!lane) return cudaErrorMemoryAllocation;
  lane->device = device;
  const cudaError_t status = prepare_lane(*lane);
  if (status != cudaSuccess) {
    lane_destroy(lane);
    (void)cudaGetLastError();
    return status;
  }
  *out = lane;
  return 0;
}

cudaError_t prepare_staging(LapidaryCudaLane& lane) {
  RETURN_IF_ERROR(cudaSetDevice(lane.device));
  if (lane.staging) return cudaSuccess;
  return cudaHostAlloc(reinterpret_cast<void**>(&lane.staging), kStagingBytes, cudaHostAllocDefault);
}

int copy_in(LapidaryCudaLane* lane, void* device, const void* host, size_t bytes) {
  RETURN_IF_ERROR(prepare_staging(*lane));
  auto* to = static_cast<unsigned char*>(device);
  const auto* from = static_cast<const unsigned char*>(host);
  constexpr size_t half = kStagingBytes / 2;
  for (size_t done = 0, turn = 0; done < bytes; ++turn) {
    const size_t piece = bytes - done < half ? bytes - done : half;
    unsigned char* staging = lane->staging + turn % 2 * half;
    memcpy(staging, from + done, piece);
    // The other half's transfer, queued before this copy, has run beside it.
    if (turn > 0) RETURN_IF_ERROR(cudaStreamSynchronize(lane->stream));
    RETURN_IF_ERROR(cudaMemcpyAsync(to + done, staging, piece, cudaMemcpyHostToDevice, lane->stream));
    done += piece;
  }
  return cudaStreamSynchronize(lane->stream);
}

int copy_out(LapidaryCudaLane* lane, void* host, const void* device, size_t bytes) {
  RETURN_IF_ERROR(prepare_staging(*lane));
  auto* to = static_cast<unsigned char*>(host);
  const auto* from = static_cast<const unsigned char*>(device);
  constexpr size_t half = kStagingBytes / 2;
  size_t pending = 0;  // bytes of the transfer that was queued last
  for (size_t done = 0, turn = 0; done < bytes || pending; ++turn) {
    RETURN_IF_ERROR(cudaStreamSynchronize(lane->stream));
    const size_t arrived = pending;
    const size_t piece = bytes - done < half ? bytes - done : half;
    if (piece) {
      RETURN_IF_ERROR(
          cudaMemcpyAsync(lane->staging + turn % 2 * half, from + done, piece, cudaMemcpyDeviceToHost, lane->stream));
    }
    if (arrived) memcpy(to + done - arrived, lane->staging + (turn + 1) % 2 * half, arrived);
    done += piece;
    pending = piece;
  }
  return 0;
}

int fill(LapidaryCudaLane* lane, void* device, int byte, size_t bytes) {
  RETURN_IF_ERROR(cudaSetDevice(lane->device));
  if (bytes) RETURN_IF_ERROR(cudaMemsetAsync(device, byte, bytes, lane->stream));
  return cudaStreamSynchronize(lane->stream);
}

// ── execution ───────────────────────────────────────────────────────────────────────────────────────────────────────

#if !defined(__CUDACC__)
void add_range(std::vector<lapidary::emulation::Range>& ranges, const void* begin, int64_t bytes, bool writable) {
  const auto* first = static_cast<const unsigned char*>(begin);
  if (first && bytes > 0) ranges.push_back({first, first + bytes, writable});
}

// From the first to behind the last byte of a tensor, gaps of a strided one included.
int64_t extent(const lapidary::TensorView& view) {
  if (view.layout == lapidary::Layout::panels || lapidary::is_block(view.dtype)) return lapidary::storage_bytes(view);
  int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (view.dims[i] == 0) return 0;
    last += (view.dims[i] - 1) * view.strides[i];
  }
  return (last + 1) * lapidary::info(view.dtype).block_bytes;
}

void allow_tensors(const Call& call, LaunchContext& context) {
  const lapidary::Contract& contract = lapidary::contract(call.op);
  context.ranges.clear();
  for (int i = 0; i < call.inputs; ++i)
    add_range(context.ranges, call.in[i].data, extent(call.in[i]), contract.inputs[i].mutated);
  for (int i = 0; i < call.outputs; ++i) add_range(context.ranges, call.out[i].data, extent(call.out[i]), true);
  add_range(context.ranges, context.workspace, int64_t(context.workspace_bytes), true);
  add_range(context.ranges, context.counters, lapidary::cuda::kCounters * int64_t(sizeof(uint32_t)), true);
  add_range(context.ranges, context.error.record, sizeof(ErrorRecord), true);
}
#endif

int fail(LapidaryCudaFailure& failure, cudaError_t error, size_t step) {
  failure.error = error;
  failure.step = step;
  snprintf(failure.message, sizeof failure.message, "CUDA error %d: %s", int(error), cudaGetErrorString(error));
  (void)cudaGetLastError();
  return -1;
}

cudaError_t reserve_workspace(LapidaryCudaLane& lane, const Call* const* calls, const void* const* kernels,
                              size_t count) {
  size_t bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const Kernel& kernel = *static_cast<const Kernel*>(kernels[i]);
    const size_t needed = kernel.workspace ? kernel.workspace(*calls[i], lane.properties) : 0;
    if (needed > bytes) bytes = needed;
  }
  if (bytes <= lane.workspace_bytes) return cudaSuccess;
  cudaFree(lane.workspace);  // the lane is idle
  lane.workspace = nullptr;
  lane.workspace_bytes = 0;
  RETURN_IF_ERROR(cudaMalloc(reinterpret_cast<void**>(&lane.workspace), bytes));
  lane.workspace_bytes = bytes;
  return cudaSuccess;
}

// Queues the calls on the lane's stream, from the first on; false and `failure` where one could not be.
bool queue(LapidaryCudaLane& lane, const Call* const* calls, const void* const* kernels, size_t count, const bool* stop,
           LapidaryCudaFailure& failure) {
  LaunchContext context;
  context.stream = lane.stream;
  context.properties = lane.properties;
  context.workspace = lane.workspace;
  context.workspace_bytes = lane.workspace_bytes;
  context.counters = lane.counters;
  for (size_t i = 0; i < count; ++i) {
    if (__atomic_load_n(stop, __ATOMIC_RELAXED)) {
      failure.stopped = 1;
      failure.step = i;
      return false;
    }
    context.error = {lane.record, uint32_t(i)};
#if !defined(__CUDACC__)
    allow_tensors(*calls[i], context);
#endif
    static_cast<const Kernel*>(kernels[i])->launch(*calls[i], context);
    if (context.status != cudaSuccess) {
      fail(failure, context.status, i);
      return false;
    }
  }
  return true;
}

// Waits for what is queued and looks at what kernels reported.
bool finish(LapidaryCudaLane& lane, const void* const* kernels, size_t count, LapidaryCudaFailure& failure) {
  const cudaError_t status = cudaStreamSynchronize(lane.stream);
  if (status != cudaSuccess) {
    fail(failure, status, count - 1);
    return false;
  }
  if (lane.record->claimed == 0) return true;
  const ErrorRecord record = *lane.record;
  *lane.record = {};
  failure.error = 0;
  failure.step = record.step < count ? record.step : count - 1;
  const Kernel& kernel = *static_cast<const Kernel*>(kernels[failure.step]);
  failure.code = int(kernel.codes ? kernel.codes[record.message] : lapidary::Code::kIndexOutOfRange);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  snprintf(failure.message, sizeof failure.message, kernel.messages[record.message],
           static_cast<long long>(record.first), static_cast<long long>(record.second));
#pragma GCC diagnostic pop
  return false;
}

// After a failure: what tickets were left with is unknown.
void clear_counters(LapidaryCudaLane& lane) {
  (void)cudaMemsetAsync(lane.counters, 0, lapidary::cuda::kCounters * sizeof(uint32_t), lane.stream);
  (void)cudaStreamSynchronize(lane.stream);
  (void)cudaGetLastError();
}

int execute(LapidaryCudaLane* lane, const Call* const* calls, const void* const* kernels, size_t count,
            const bool* stop, LapidaryCudaFailure* failure) {
  *failure = {};
  if (count == 0) return 0;
  cudaError_t status = cudaSetDevice(lane->device);
  if (status == cudaSuccess) status = reserve_workspace(*lane, calls, kernels, count);
  if (status != cudaSuccess) return fail(*failure, status, 0);
  const bool queued = queue(*lane, calls, kernels, count, stop, *failure);
  LapidaryCudaFailure later = {};
  const bool finished = finish(*lane, kernels, count, queued ? *failure : later);
  if (queued && finished) return 0;
  if (!finished) clear_counters(*lane);
  return -1;
}

// ── graphs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

void replay_destroy(LapidaryCudaReplay* replay) {
  if (!replay) return;
  if (replay->lane && cudaSetDevice(replay->lane->device) == cudaSuccess) {
    for (auto& entry : replay->entries) {
      if (entry.graph) cudaGraphExecDestroy(entry.graph);
    }
    if (replay->begun) cudaEventDestroy(replay->begun);
    if (replay->ended) cudaEventDestroy(replay->ended);
  }
  lane_destroy(replay->lane);
  delete replay;
}

int replay_create(int device, LapidaryCudaReplay** out) {
  *out = nullptr;
  auto* replay = new (std::nothrow) LapidaryCudaReplay();
  if (!replay) return cudaErrorMemoryAllocation;
  int status = lane_create(device, &replay->lane);
  if (status == 0 && timing()) {
    status = cudaEventCreate(&replay->begun);
    if (status == 0) status = cudaEventCreate(&replay->ended);
  }
  if (status != 0) {
    replay_destroy(replay);
    (void)cudaGetLastError();
    return status;
  }
  *out = replay;
  return 0;
}

// Captures the calls into `entry`. What a stream captures it does not run.
bool capture(LapidaryCudaReplay& replay, LapidaryCudaReplay::Entry& entry, const Call* const* calls,
             const void* const* kernels, size_t count, const bool* stop, LapidaryCudaFailure& failure) {
  LapidaryCudaLane& lane = *replay.lane;
  if (entry.graph) cudaGraphExecDestroy(entry.graph);
  entry.graph = nullptr;
  entry.keys.clear();
  cudaError_t status = cudaStreamBeginCapture(lane.stream, cudaStreamCaptureModeThreadLocal);
  if (status != cudaSuccess) return fail(failure, status, 0) == 0;
  const bool queued = queue(lane, calls, kernels, count, stop, failure);
  cudaGraph_t graph = nullptr;
  status = cudaStreamEndCapture(lane.stream, &graph);
  if (queued && status == cudaSuccess) status = cudaGraphInstantiate(&entry.graph, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (!queued) return false;
  if (status != cudaSuccess) return fail(failure, status, 0) == 0;
  graphs.fetch_add(1, std::memory_order_relaxed);
  return true;
}

cudaError_t copy(LapidaryCudaLane& lane, const LapidaryCudaCopy* copies, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (copies[i].bytes == 0) continue;
    RETURN_IF_ERROR(
        cudaMemcpyAsync(copies[i].to, copies[i].from, copies[i].bytes, cudaMemcpyDeviceToDevice, lane.stream));
  }
  return cudaSuccess;
}

int replay_run(LapidaryCudaReplay* replay, const void* const* keys, size_t key_count, const LapidaryCudaCopy* before,
               size_t before_count, const LapidaryCudaCopy* after, size_t after_count, const Call* const* calls,
               const void* const* kernels, size_t count, const bool* stop, LapidaryCudaFailure* failure) {
  *failure = {};
  if (count == 0) return 0;
  LapidaryCudaLane& lane = *replay->lane;
  cudaError_t status = cudaSetDevice(lane.device);
  if (status == cudaSuccess) status = reserve_workspace(lane, calls, kernels, count);
  if (status != cudaSuccess) return fail(*failure, status, 0);
  LapidaryCudaReplay::Entry* entry = nullptr;
  LapidaryCudaReplay::Entry* oldest = &replay->entries[0];
  for (auto& candidate : replay->entries) {
    if (candidate.graph && std::equal(candidate.keys.begin(), candidate.keys.end(), keys, keys + key_count)) {
      entry = &candidate;
    }
    if (candidate.used < oldest->used) oldest = &candidate;
  }
  if (!entry) {
    entry = oldest;
    if (!capture(*replay, *entry, calls, kernels, count, stop, *failure)) return -1;
    entry->keys.assign(keys, keys + key_count);
  }
  entry->used = ++replay->clock;
  status = copy(lane, before, before_count);
  if (status == cudaSuccess && replay->ended) status = cudaEventRecord(replay->begun, lane.stream);
  if (status == cudaSuccess) status = cudaGraphLaunch(entry->graph, lane.stream);
  if (status == cudaSuccess && replay->ended) status = cudaEventRecord(replay->ended, lane.stream);
  if (status == cudaSuccess) status = copy(lane, after, after_count);
  LapidaryCudaFailure later = {};
  const bool finished = finish(lane, kernels, count, status == cudaSuccess ? *failure : later);
  if (status != cudaSuccess) fail(*failure, status, count - 1);
  if (status == cudaSuccess && finished) {
    float milliseconds = 0;
    if (replay->ended && cudaEventElapsedTime(&milliseconds, replay->begun, replay->ended) == cudaSuccess) {
      replay_nanoseconds.fetch_add(int64_t(double(milliseconds) * 1e6 + 0.5), std::memory_order_relaxed);
    }
    return 0;
  }
  clear_counters(lane);
  return -1;
}

double replay_milliseconds() {
  return timing() ? double(replay_nanoseconds.load(std::memory_order_relaxed)) / 1e6 : -1;
}

int64_t graphs_made() { return graphs.load(std::memory_order_relaxed); }

#if defined(__CUDACC__)
constexpr int kEmulated = 0;
#else
constexpr int kEmulated = 1;
#endif

// Not constexpr: `architectures` is another file's.
const LapidaryCudaApi api = {kLapidaryCudaVersion, sizeof(Call), lapidary::cuda::architectures, kEmulated,
                             // devices
                             driver_version, device_count, describe_device, free_memory, error_text, allocate, release,
                             find_kernel,
                             // lanes
                             lane_create, lane_destroy, copy_in, copy_out, fill, execute,
                             // replays
                             replay_create, replay_destroy, replay_run, graphs_made, replay_milliseconds};

}  // namespace

extern "C" __attribute__((visibility("default"))) const LapidaryCudaApi* lapidary_cuda_api() { return &api; }
