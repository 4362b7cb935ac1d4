#include "backends/cuda/library.h"

#include <mutex>

#include "core/system.h"

namespace lapidary {
namespace {

// What nvcc 13.0 needs; it came with driver R580.
constexpr int kDriverVersion = 13000;
constexpr int kInsufficientDriver = 35;  // cudaErrorInsufficientDriver
constexpr int kNoDevice = 100;           // cudaErrorNoDevice

Status open_api(const std::string& path, const LapidaryCudaApi*& out) {
  std::string reason;
  void* library = open_library(path, reason);
  if (!library) {
    return error(
        Code::kDeviceUnavailable,
        "cuda: the CUDA library could not be opened: %s. Prebuilt packages have it; from source: LAPIDARY_CUDA=on "
        "npx lapidary build, with nvcc 13.0 or newer",
        reason.c_str());
  }
  const auto entry = reinterpret_cast<LapidaryCudaEntry>(find_symbol(library, "lapidary_cuda_api"));
  const LapidaryCudaApi* api = entry ? entry() : nullptr;
  if (!api || api->version != kLapidaryCudaVersion || api->call_bytes != sizeof(Call)) {
    return error(Code::kDeviceUnavailable, "cuda: %s is of another version of this package", path.c_str());
  }
  out = api;
  return {};
}

}  // namespace

Status open_cuda_library(bool emulated, const LapidaryCudaApi*& out) {
  static std::mutex mutex;
  static const LapidaryCudaApi* opened[2] = {};
  std::lock_guard lock(mutex);
  if (!opened[emulated]) {
    const std::string folder = folder_of(reinterpret_cast<const void*>(&open_cuda_library));
    const std::string name = library_file_name(emulated ? "lapidary_cuda_emulated" : "lapidary_cuda");
    LAPIDARY_RETURN_IF_ERROR(open_api(folder + name, opened[emulated]));
  }
  out = opened[emulated];
  return {};
}

std::string cuda_version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Status check_cuda_driver(const LapidaryCudaApi& api, int& device_count) {
  device_count = 0;
  int version = 0;
  api.driver_version(&version);
  const int status = api.device_count(&device_count);
  if (version == 0) {
    return error(Code::kDeviceUnavailable,
                 "cuda: no NVIDIA driver: expected libcuda.so.1 of driver 580 or newer (CUDA error %d: %s)", status,
                 api.error_text(status));
  }
  if (version < kDriverVersion || status == kInsufficientDriver) {
    return error(Code::kDeviceUnavailable,
                 "cuda: the NVIDIA driver is too old: expected 580 or newer (CUDA 13.0), got one for CUDA %s",
                 cuda_version_text(version).c_str());
  }
  if (status == kNoDevice || (status == 0 && device_count == 0)) {
    return error(Code::kDeviceUnavailable,
                 "cuda: no GPU: the driver sees none, or CUDA_VISIBLE_DEVICES leaves none (CUDA error %d)", status);
  }
  if (status != 0) {
    return error(Code::kDeviceUnavailable, "cuda: the driver reports CUDA error %d: %s", status,
                 api.error_text(status));
  }
  return {};
}

}  // namespace lapidary
