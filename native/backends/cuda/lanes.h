// lanes.h: the streams of a GPU. Whoever copies or executes borrows one for as long as it takes; there are as many as were ever needed
// at once. What fails outside an execution is kept as the device's defect, which the next completion reports.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cuda/library.h"

namespace lapidary {

class CudaLanes {
 public:
  CudaLanes(const LapidaryCudaApi& api, int device) : api_(api), device_(device) {}
  ~CudaLanes();
  CudaLanes(const CudaLanes&) = delete;
  CudaLanes& operator=(const CudaLanes&) = delete;

  // A lane until the end of its scope.
  class Borrowed {
   public:
    explicit Borrowed(CudaLanes& lanes);
    ~Borrowed();
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    LapidaryCudaLane* lane = nullptr;  // null: `status` says why
    int status = 0;

   private:
    CudaLanes& lanes_;
  };

  const LapidaryCudaApi& api() const { return api_; }
  int device() const { return device_; }

  // These wait until it is done. What goes wrong becomes the defect.
  void copy_in(void* device, const void* host, size_t bytes);
  void copy_out(void* host, const void* device, size_t bytes);
  void fill(void* device, int byte, size_t bytes);

  void report(const std::string& defect);
  std::string take_defect();

 private:
  void check(int status, const char* what);

  const LapidaryCudaApi& api_;
  const int device_;
  std::mutex mutex_;
  std::vector<LapidaryCudaLane*> idle_;
  std::string defect_;
};

}  // namespace lapidary
