// cuda_device.h: GPUs as devices.
#pragma once
#include "backends/device.h"

namespace lapidary {

// Opens GPU `index`. Blocking: the driver takes some hundred milliseconds to begin. Fails with ERR_DEVICE_UNAVAILABLE, and says whether
// the library, the driver, a newer driver, the GPU or its verification is missing. Any thread.
Status open_cuda_device(const DeviceOptions& options, int index, std::shared_ptr<Device>& out);

// Every GPU, or one entry that says why there are none to be had.
std::vector<GpuListing> list_cuda_devices();

}  // namespace lapidary
