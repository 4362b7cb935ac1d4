// allocator.h: CPU memory for tensors. Freed blocks are kept for the next allocation of their size class, because an
// eager op allocates its output and a fresh mapping costs a page fault per page; large blocks are 2 MiB aligned
// and ask for huge pages, because weights are read as one long stream and 4 KiB pages stop the hardware prefetchers.
#pragma once
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "backends/device.h"

namespace lapidary {

class Allocator : public std::enable_shared_from_this<Allocator> {
 public:
  explicit Allocator(bool guard);
  ~Allocator();

  Status allocate(int64_t bytes, BufferRef& out);
  MemoryStats stats() const;
  int64_t limit() const { return limit_; }
  std::string take_defect();

 private:
  friend class CpuBuffer;
  struct Block {
    unsigned char* base = nullptr;
    size_t bytes = 0;  // its size class
  };
  Status take(size_t bytes, Block& out);
  void give_back(Block block);
  static void release(Block block);
  void drop_cache();  // with mutex_ held
  void report(const std::string& defect);

  const bool guard_;
  int64_t limit_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;
  size_t cached_ = 0;
  int64_t mapped_ = 0;
  int64_t live_bytes_ = 0;
  int64_t live_buffers_ = 0;
  std::string defect_;
};

// Bytes of memory this process may use: the machine's, or the container's limit.
int64_t memory_limit();

}  // namespace lapidary
