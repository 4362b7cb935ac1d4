// abi.h: the C interface between the addon and the CUDA library, which is opened at run time (backends/cuda/library.cc). The library
// exports one function, lapidary_cuda_api; both sides are built from the same headers, which `version` and `call_bytes` check.
//
// Functions return 0 or a value of cudaError_t. Nothing throws, prints or exits. All but those of one lane or replay may be called from
// any thread at any time; a lane and a replay belong to one thread at a time.
#pragma once
#include "ops/call.h"

extern "C" {

static const unsigned kLapidaryCudaVersion = 2;

struct LapidaryCudaDevice {
  char name[256];
  int compute_capability;  // 10 · major + minor
  int multiprocessors;
  int64_t memory_bytes;
};

// A stream of the device with what its calls share: workspace, counters, pinned staging, error record.
struct LapidaryCudaLane;
// What makes executing the same calls again cheap: a lane, and graphs of them.
struct LapidaryCudaReplay;

// Within the device.
struct LapidaryCudaCopy {
  void* to;
  const void* from;
  size_t bytes;
};

struct LapidaryCudaFailure {
  int error;    // cudaError_t; 0: what a kernel found in device data
  int code;     // of what a kernel found: lapidary::Code
  int stopped;  // *stop was set before all calls were queued
  size_t step;  // of the call; where it is unknown (an asynchronous failure), the last one
  char message[512];
};

struct LapidaryCudaApi {
  unsigned version;
  unsigned call_bytes;        // sizeof(Call)
  const char* architectures;  // "80 90a": what the library was built for
  int emulated;

  int (*driver_version)(int* version);  // 1000 · major + 10 · minor; 0: no driver
  int (*device_count)(int* count);
  int (*device)(int index, LapidaryCudaDevice* out);  // takes no memory of the device
  int (*free_memory)(int device, int64_t* bytes);
  const char* (*error_text)(int error);

  int (*allocate)(int device, size_t bytes, void** out);
  int (*release)(int device, void* memory);

  // The kernel of an op; null: none.
  const void* (*find_kernel)(int op);

  int (*lane_create)(int device, LapidaryCudaLane** out);
  void (*lane_destroy)(LapidaryCudaLane* lane);
  // Each returns when it is done.
  int (*copy_in)(LapidaryCudaLane* lane, void* device, const void* host, size_t bytes);
  int (*copy_out)(LapidaryCudaLane* lane, void* host, const void* device, size_t bytes);
  int (*fill)(LapidaryCudaLane* lane, void* device, int byte, size_t bytes);
  // Queues the calls in order and waits for them. `kernels` are those of find_kernel. 0, or −1 with `failure`. No further call is
  // queued once *stop is set.
  int (*execute)(LapidaryCudaLane* lane, const lapidary::Call* const* calls, const void* const* kernels, size_t count,
                 const bool* stop, LapidaryCudaFailure* failure);

  int (*replay_create)(int device, LapidaryCudaReplay** out);
  void (*replay_destroy)(LapidaryCudaReplay* replay);
  // As execute, between copies before and after. The calls must be those of the first time but for addresses that depend on
  // `keys` alone: a graph is captured for each set of keys.
  int (*replay_run)(LapidaryCudaReplay* replay, const void* const* keys, size_t key_count,
                    const LapidaryCudaCopy* before, size_t before_count, const LapidaryCudaCopy* after,
                    size_t after_count, const lapidary::Call* const* calls, const void* const* kernels, size_t count,
                    const bool* stop, LapidaryCudaFailure* failure);
  // Graphs made by all replays so far; for tests.
  int64_t (*graphs_made)();
  // Milliseconds that the device spent in the graphs of all replays so far, copies left out, by its own clock; below 0: it was not asked
  // to count (LAPIDARY_CUDA_TIMING=1, for benchmarks: two events per replay).
  double (*replay_milliseconds)();
};

// The one exported symbol.
typedef const LapidaryCudaApi* (*LapidaryCudaEntry)();
}
