#include "kernels/cuda/device/emulation/runtime.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <utility>

using lapidary::emulation::Body;
using lapidary::emulation::LaunchOptions;
using lapidary::emulation::Range;

namespace {

// The memory of the emulated device: small enough that a test can ask for more.
constexpr size_t kMemoryBytes = size_t(3) << 30;

struct RecordedLaunch {
  LaunchOptions options;
  Body body;
  std::vector<unsigned char> params;
  std::vector<Range> ranges;
};

std::mutex memory_mutex;
std::map<void*, size_t>& allocations = *new std::map<void*, size_t>();  // never destroyed, as streams may outlive it
size_t allocated = 0;

thread_local std::string failure;

uint64_t next_seed() {
  static std::atomic<uint64_t> seed{[] {
    const char* text = getenv("LAPIDARY_CUDA_EMULATION_SEED");
    return text ? strtoull(text, nullptr, 10) : 1;
  }()};
  return seed.fetch_add(1, std::memory_order_relaxed);
}

// LAPIDARY_CUDA_EMULATION_FAULT=<n>: the process's launch n fails as one that read a wild address would, so that tests see
// what becomes of a device error.
bool is_faulty() {
  static const char* const text = getenv("LAPIDARY_CUDA_EMULATION_FAULT");
  static const uint64_t faulty = text ? strtoull(text, nullptr, 10) : 0;
  static std::atomic<uint64_t> launched{0};
  return text && launched.fetch_add(1, std::memory_order_relaxed) + 1 == faulty;
}

}  // namespace

struct EmulatedGraph {
  std::vector<RecordedLaunch> launches;
};

struct EmulatedStream {
  EmulatedGraph* capturing = nullptr;
  cudaError_t status = cudaSuccess;
};

// A launch is done when it returns, so the host's clock is the device's.
struct EmulatedEvent {
  std::chrono::steady_clock::time_point at;
};

namespace {

cudaError_t execute(cudaStream_t stream, LaunchOptions options, Body body, const void* params) {
  if (stream->status != cudaSuccess) return stream->status;
  options.seed = next_seed();
  std::string error = is_faulty() ? "a fault that a test asked for" : lapidary::emulation::run(options, body, params);
  if (error.empty()) return cudaSuccess;
  failure = std::move(error);
  return stream->status = cudaErrorLaunchFailure;
}

}  // namespace

namespace lapidary::emulation {

const std::string& launch_error() { return failure; }

cudaError_t launch(cudaStream_t stream, LaunchOptions options, Body body, const void* params, size_t params_bytes) {
  if (!stream->capturing) return execute(stream, options, body, params);
  const auto* bytes = static_cast<const unsigned char*>(params);
  RecordedLaunch recorded{options, body, {bytes, bytes + params_bytes}, {}};
  if (options.ranges) recorded.ranges = *options.ranges;
  stream->capturing->launches.push_back(std::move(recorded));
  return cudaSuccess;
}

}  // namespace lapidary::emulation

cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {};
  snprintf(properties->name, sizeof properties->name, "host emulation");
  properties->major = 8;
  properties->minor = 0;
  properties->multiProcessorCount = 4;
  properties->totalGlobalMem = kMemoryBytes;
  properties->sharedMemPerBlockOptin = 99 * 1024;  // the least of the architectures: 8.6, 8.9 and 12.0
  properties->l2CacheSize = 1 << 20;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  std::lock_guard lock(memory_mutex);
  *free_bytes = kMemoryBytes - allocated;
  *total = kMemoryBytes;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorLaunchFailure: return failure.empty() ? "unspecified launch failure" : failure.c_str();
  }
  return "unrecognized error code";
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  std::lock_guard lock(memory_mutex);
  *memory = nullptr;
  if (bytes > kMemoryBytes - allocated) return cudaErrorMemoryAllocation;
  void* block = aligned_alloc(256, (bytes + 511) / 256 * 256);
  if (!block) return cudaErrorMemoryAllocation;
  allocations[block] = bytes;
  allocated += bytes;
  *memory = block;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  std::lock_guard lock(memory_mutex);
  const auto found = allocations.find(memory);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  allocated -= found->second;
  allocations.erase(found);
  free(memory);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void* memory) { return free(memory), cudaSuccess; }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new (std::nothrow) EmulatedStream();
  return *stream ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }

// A real context would be lost; the emulated one goes on, so that a test sees one violation at a time.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return std::exchange(stream->status, cudaSuccess); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes) memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  if (bytes) memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new (std::nothrow) EmulatedEvent();
  return *event ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->at = std::chrono::steady_clock::now();
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = new (std::nothrow) EmulatedGraph();
  return stream->capturing ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->capturing, nullptr);
  return *graph ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new (std::nothrow) EmulatedGraph(*graph);
  return *executable ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (RecordedLaunch& recorded : executable->launches) {
    recorded.options.ranges = &recorded.ranges;
    const cudaError_t status = execute(stream, recorded.options, recorded.body, recorded.params.data());
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
