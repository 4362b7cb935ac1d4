// allocator.h: device memory for tensors. Freed blocks are kept by size class: cudaMalloc and cudaFree take tens of microseconds to
// milliseconds and wait for the device. A block is given back when nothing in flight uses it (core/buffer.h), so that whoever gets it
// next need not wait.
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cuda/lanes.h"
#include "backends/device.h"

namespace lapidary {

class CudaAllocator : public std::enable_shared_from_this<CudaAllocator> {
 public:
  CudaAllocator(std::shared_ptr<CudaLanes> lanes, bool guard);
  ~CudaAllocator();

  Status allocate(int64_t bytes, BufferRef& out);
  MemoryStats stats() const;

 private:
  friend class CudaBuffer;
  struct Block {
    unsigned char* base = nullptr;
    size_t bytes = 0;  // its size class
  };
  Status take(size_t bytes, Block& out);
  void give_back(Block block);
  void drop_cache();
  Status guard_block(const Block& block, size_t bytes);
  void check_guards(const unsigned char* data, size_t bytes);

  const std::shared_ptr<CudaLanes> lanes_;
  const bool guard_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;
  size_t cached_ = 0;
  int64_t live_bytes_ = 0;
  int64_t live_buffers_ = 0;
};

}  // namespace lapidary
