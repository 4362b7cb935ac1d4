// allocator.h: CPU memory for tensors. Freed blocks are kept for the next allocation of their size class, because an
// eager op allocates its output and a fresh mapping costs a page fault per page. Large blocks lie in 2 MiB pages, because
// weights are read as one long stream and 4 KiB pages stop the hardware prefetchers: those of a Gemma 3 1B (0.7 … 9 MB)
// one after another in long mappings, so that huge pages run across their borders. A matrix of 1 MB in 4 KiB pages is
// read at three quarters of the speed (Zen 5 guest, 2 threads).
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
  unsigned char* map_block(size_t bytes);
  static void release(Block block);
  void drop_cache();  // with mutex_ held
  void report(const std::string& defect);

  const bool guard_;
  int64_t limit_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<Block>> free_;
  size_t cached_ = 0;
  int64_t mapped_ = 0;
  // What is left of the mapping that the next mapped block is carved from.
  unsigned char* region_ = nullptr;
  unsigned char* region_end_ = nullptr;
  int64_t live_bytes_ = 0;
  int64_t live_buffers_ = 0;
  std::string defect_;
};

// Zeros memory of an Allocator that nobody uses. Whole pages of large blocks are given back to the system, which hands out
// zeros when they are first touched: a large cache takes only the memory that is used of it.
void zero_memory(unsigned char* data, size_t bytes);

}  // namespace lapidary
