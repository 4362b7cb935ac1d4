// library.h: the CUDA library, opened beside the addon when a GPU is first asked about. It stays open.
#pragma once
#include "core/status.h"
#include "kernels/cuda/abi.h"

namespace lapidary {

// liblapidary_cuda.so, or the emulated one that only tests have. Fails with ERR_DEVICE_UNAVAILABLE where it is absent, cannot be opened,
// or was built from other sources. Any thread.
Status open_cuda_library(bool emulated, const LapidaryCudaApi*& out);

// Whether there are GPUs that the library can use at all, and how many: says what is missing (driver, a newer driver, a device).
Status check_cuda_driver(const LapidaryCudaApi& api, int& device_count);

// "13.0" of cudaDriverGetVersion's 13000.
std::string cuda_version_text(int version);

}  // namespace lapidary
