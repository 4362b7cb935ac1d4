#include "backends/cuda/allocator.h"

#include <cinttypes>
#include <cstring>

namespace lapidary {
namespace {

constexpr int kOutOfMemory = 2;      // cudaErrorMemoryAllocation
constexpr size_t kGuardBytes = 256;  // keeps the alignment that cudaMalloc gives
constexpr unsigned char kGuardPattern = 0xA5;
constexpr size_t kCacheBytes = size_t(1) << 30;

// Powers of two and three steps between; large ones in steps of 2 MiB, the page of device memory.
size_t size_class(size_t bytes) {
  if (bytes <= 512) return 512;
  constexpr size_t kPage = size_t(2) << 20;
  if (bytes > 8 * kPage) return (bytes + kPage - 1) / kPage * kPage;
  size_t power = 512;
  while (power * 2 < bytes) power *= 2;
  const size_t step = power / 4;
  return (bytes + step - 1) / step * step;
}

}  // namespace

class CudaBuffer final : public Buffer {
 public:
  CudaBuffer(std::shared_ptr<CudaAllocator> owner, CudaAllocator::Block block, unsigned char* data, int64_t bytes)
      : Buffer(data, bytes), owner_(std::move(owner)), block_(block) {}
  ~CudaBuffer() override {
    if (owner_->guard_) owner_->check_guards(data(), size_t(bytes()));
    {
      std::lock_guard lock(owner_->mutex_);
      owner_->live_bytes_ -= bytes();
      --owner_->live_buffers_;
    }
    owner_->give_back(block_);
  }

 private:
  std::shared_ptr<CudaAllocator> owner_;
  CudaAllocator::Block block_;
};

CudaAllocator::CudaAllocator(std::shared_ptr<CudaLanes> lanes, bool guard) : lanes_(std::move(lanes)), guard_(guard) {}

CudaAllocator::~CudaAllocator() { drop_cache(); }

void CudaAllocator::drop_cache() {
  std::map<size_t, std::vector<Block>> blocks;
  {
    std::lock_guard lock(mutex_);
    blocks.swap(free_);
    cached_ = 0;
  }
  for (const auto& entry : blocks) {
    for (const Block& block : entry.second) lanes_->api().release(lanes_->device(), block.base);
  }
}

Status CudaAllocator::take(size_t bytes, Block& out) {
  out.bytes = size_class(bytes);
  {
    std::lock_guard lock(mutex_);
    auto found = free_.find(out.bytes);
    if (found != free_.end() && !found->second.empty()) {
      out = found->second.back();
      found->second.pop_back();
      cached_ -= out.bytes;
      return {};
    }
  }
  const LapidaryCudaApi& api = lanes_->api();
  void* base = nullptr;
  int status = api.allocate(lanes_->device(), out.bytes, &base);
  if (status == kOutOfMemory) {
    drop_cache();
    status = api.allocate(lanes_->device(), out.bytes, &base);
  }
  out.base = static_cast<unsigned char*>(base);
  if (status == 0) return {};
  if (status != kOutOfMemory) {
    return error(Code::kInternal, "allocate: CUDA error %d: %s", status, api.error_text(status));
  }
  int64_t free_bytes = 0;
  api.free_memory(lanes_->device(), &free_bytes);
  return error(Code::kOutOfMemory, "allocate: the GPU has no %zu bytes: %" PRId64 " are free", out.bytes, free_bytes);
}

void CudaAllocator::give_back(Block block) {
  {
    std::lock_guard lock(mutex_);
    if (cached_ + block.bytes <= kCacheBytes) {
      free_[block.bytes].push_back(block);
      cached_ += block.bytes;
      return;
    }
  }
  lanes_->api().release(lanes_->device(), block.base);
}

Status CudaAllocator::allocate(int64_t bytes, BufferRef& out) {
  if (bytes < 0 || bytes > kMaxTensorBytes) {
    return error(Code::kOutOfMemory, "allocate: %" PRId64 " bytes are more than any tensor may have", bytes);
  }
  const size_t guard = guard_ ? kGuardBytes : 0;
  Block block;
  LAPIDARY_RETURN_IF_ERROR(take(size_t(bytes) + 2 * guard, block));
  unsigned char* data = block.base + guard;
  if (guard_) {
    lanes_->fill(block.base, kGuardPattern, guard);
    lanes_->fill(data, 0xFF, size_t(bytes));  // all ones is NaN in f32, f16 and bf16
    lanes_->fill(data + bytes, kGuardPattern, guard);
  }
  {
    std::lock_guard lock(mutex_);
    live_bytes_ += bytes;
    ++live_buffers_;
  }
  out = std::make_shared<CudaBuffer>(shared_from_this(), block, data, bytes);
  return {};
}

void CudaAllocator::check_guards(const unsigned char* data, size_t bytes) {
  unsigned char around[2][kGuardBytes];
  lanes_->copy_out(around[0], data - kGuardBytes, kGuardBytes);
  lanes_->copy_out(around[1], data + bytes, kGuardBytes);
  for (int side = 0; side < 2; ++side) {
    for (unsigned char byte : around[side]) {
      if (byte == kGuardPattern) continue;
      lanes_->report("guard: a kernel wrote " + std::string(side ? "past the end of" : "before") + " a buffer of " +
                     std::to_string(bytes) + " bytes");
      return;
    }
  }
}

MemoryStats CudaAllocator::stats() const {
  std::lock_guard lock(mutex_);
  return {live_bytes_, live_buffers_, int64_t(cached_)};
}

}  // namespace lapidary
