#include "backends/device.h"

#include <cstdlib>

#include "backends/cuda/cuda_device.h"

namespace lapidary {

Status open_device(const DeviceOptions& options, std::shared_ptr<Device>& out) {
  if (options.kind == "cpu") return open_cpu_device(options, out);
  if (options.kind == "cuda") return open_cuda_device(options, 0, out);
  if (options.kind.starts_with("cuda:")) {
    const std::string digits = options.kind.substr(5);
    if (!digits.empty() && digits.size() <= 4 && digits.find_first_not_of("0123456789") == std::string::npos)
      return open_cuda_device(options, atoi(digits.c_str()), out);
  }
  return error(Code::kDeviceUnavailable, "Device.open: expected 'cpu', 'cuda' or 'cuda:' and a number, got '%s'",
               options.kind.c_str());
}

std::vector<GpuListing> list_gpus() { return list_cuda_devices(); }

}  // namespace lapidary
