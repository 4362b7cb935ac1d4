#include "backends/cuda/lanes.h"

namespace lapidary {

CudaLanes::~CudaLanes() {
  for (LapidaryCudaLane* lane : idle_) api_.lane_destroy(lane);
}

CudaLanes::Borrowed::Borrowed(CudaLanes& lanes) : lanes_(lanes) {
  {
    std::lock_guard lock(lanes_.mutex_);
    if (!lanes_.idle_.empty()) {
      lane = lanes_.idle_.back();
      lanes_.idle_.pop_back();
      return;
    }
  }
  status = lanes_.api_.lane_create(lanes_.device_, &lane);
}

CudaLanes::Borrowed::~Borrowed() {
  if (!lane) return;
  std::lock_guard lock(lanes_.mutex_);
  lanes_.idle_.push_back(lane);
}

void CudaLanes::copy_in(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  Borrowed borrowed(*this);
  check(borrowed.lane ? api_.copy_in(borrowed.lane, device, host, bytes) : borrowed.status, "copying to the device");
}

void CudaLanes::copy_out(void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  Borrowed borrowed(*this);
  check(borrowed.lane ? api_.copy_out(borrowed.lane, host, device, bytes) : borrowed.status, "copying from the device");
}

void CudaLanes::fill(void* device, int byte, size_t bytes) {
  if (bytes == 0) return;
  Borrowed borrowed(*this);
  check(borrowed.lane ? api_.fill(borrowed.lane, device, byte, bytes) : borrowed.status, "filling device memory");
}

void CudaLanes::check(int status, const char* what) {
  if (status != 0)
    report("cuda: " + std::string(what) + ": CUDA error " + std::to_string(status) + ": " + api_.error_text(status));
}

void CudaLanes::report(const std::string& defect) {
  std::lock_guard lock(mutex_);
  if (defect_.empty()) defect_ = defect;
}

std::string CudaLanes::take_defect() {
  std::lock_guard lock(mutex_);
  return std::exchange(defect_, std::string());
}

}  // namespace lapidary
