#include "backends/cpu/allocator.h"

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "core/system.h"

namespace lapidary {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 128;  // two cache lines: the adjacent-line prefetcher pairs them
constexpr size_t kGuardBytes = 128;
constexpr unsigned char kGuardPattern = 0xA5;
constexpr size_t kCacheBytes = size_t(512) << 20;  // holds the widest GeGLU input of a 2048-token chunk of Gemma 3 27B

// Small blocks: powers of two and three steps between, so that at most a fifth is wasted. Large ones: whole pages.
size_t size_class(size_t bytes) {
  if (bytes <= 256) return 256;
  if (bytes > (size_t(1) << 20)) return (bytes + 16 * kPage - 1) / (16 * kPage) * (16 * kPage);
  size_t power = 256;
  while (power * 2 < bytes) power *= 2;
  const size_t step = power / 4 < kAlignment ? kAlignment : power / 4;
  return (bytes + step - 1) / step * step;
}

bool is_mapped(size_t bytes) { return bytes >= (size_t(256) << 10); }

// Mappings from which mapped blocks are carved one after another, and the size from which a block has one of its own.
constexpr size_t kRegion = size_t(256) << 20;
constexpr size_t kOwnMapping = kRegion / 4;

}  // namespace

void zero_memory(unsigned char* data, size_t bytes) {
  // Smaller blocks come from the heap, whose pages hold other things too.
  if (is_mapped(bytes)) {
    const auto page = uintptr_t(page_bytes());
    const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    auto* middle = reinterpret_cast<unsigned char*>(begin);
    if (discard_pages(middle, end - begin)) {
      memset(data, 0, size_t(middle - data));
      memset(reinterpret_cast<void*>(end), 0, size_t(data + bytes - reinterpret_cast<unsigned char*>(end)));
      return;
    }
  }
  memset(data, 0, bytes);
}

class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::shared_ptr<Allocator> owner, Allocator::Block block, unsigned char* data, int64_t bytes)
      : Buffer(data, bytes), owner_(std::move(owner)), block_(block) {}
  ~CpuBuffer() override {
    if (owner_->guard_) check_guards();
    {
      std::lock_guard lock(owner_->mutex_);
      owner_->live_bytes_ -= bytes();
      --owner_->live_buffers_;
    }
    owner_->give_back(block_);
  }

 private:
  void check_guards() {
    const unsigned char* after = data() + bytes();
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (data()[-1 - ptrdiff_t(i)] == kGuardPattern && after[i] == kGuardPattern) continue;
      char text[160];
      snprintf(text, sizeof text, "guard: a kernel wrote %s a buffer of %" PRId64 " bytes",
               after[i] == kGuardPattern ? "before" : "past the end of", bytes());
      owner_->report(text);
      return;
    }
  }

  std::shared_ptr<Allocator> owner_;
  Allocator::Block block_;
};

Allocator::Allocator(bool guard) : guard_(guard), limit_(memory_limit()) {}

Allocator::~Allocator() {
  drop_cache();
  if (region_) unmap_pages(region_, size_t(region_end_ - region_));
}

unsigned char* Allocator::map_block(size_t bytes) {
  if (bytes >= kOwnMapping || !unmaps_parts()) return map_pages(bytes);
  std::lock_guard lock(mutex_);
  if (size_t(region_end_ - region_) < bytes) {
    unsigned char* fresh = map_pages(kRegion);
    if (!fresh) return map_pages(bytes);  // address space is limited
    if (region_) unmap_pages(region_, size_t(region_end_ - region_));
    region_ = fresh;
    region_end_ = fresh + kRegion;
  }
  unsigned char* block = region_;
  region_ += bytes;
  return block;
}

void Allocator::release(Block block) {
  if (is_mapped(block.bytes)) {
    unmap_pages(block.base, block.bytes);
  } else {
    free_aligned(block.base);
  }
}

void Allocator::drop_cache() {
  for (auto& [bytes, blocks] : free_) {
    for (const Block& block : blocks) release(block);
  }
  free_.clear();
  mapped_ -= int64_t(cached_);
  cached_ = 0;
}

Status Allocator::take(size_t bytes, Block& out) {
  const size_t size = size_class(bytes);
  {
    std::lock_guard lock(mutex_);
    auto found = free_.find(size);
    if (found != free_.end() && !found->second.empty()) {
      out = found->second.back();
      found->second.pop_back();
      cached_ -= size;
      return {};
    }
    if (mapped_ + int64_t(size) > limit_) drop_cache();
    if (mapped_ + int64_t(size) > limit_) {
      return error(Code::kOutOfMemory,
                   "allocate: expected at most %" PRId64 " bytes in use, got %" PRId64 " more than %" PRId64, limit_,
                   int64_t(size), mapped_);
    }
    mapped_ += int64_t(size);
  }
  out.bytes = size;
  out.base = is_mapped(size) ? map_block(size) : static_cast<unsigned char*>(allocate_aligned(kAlignment, size));
  if (out.base) return {};
  std::lock_guard lock(mutex_);
  mapped_ -= int64_t(size);
  return error(Code::kOutOfMemory, "allocate: the system has no %zu bytes", size);
}

void Allocator::give_back(Block block) {
  {
    std::lock_guard lock(mutex_);
    if (cached_ + block.bytes <= kCacheBytes) {
      free_[block.bytes].push_back(block);
      cached_ += block.bytes;
      return;
    }
    mapped_ -= int64_t(block.bytes);
  }
  release(block);  // unmapping takes a while: not under the lock
}

Status Allocator::allocate(int64_t bytes, BufferRef& out) {
  if (bytes < 0 || bytes > kMaxTensorBytes) {
    return error(Code::kOutOfMemory, "allocate: %" PRId64 " bytes are more than any tensor may have", bytes);
  }
  const size_t guard = guard_ ? kGuardBytes : 0;
  Block block;
  LAPIDARY_RETURN_IF_ERROR(take(size_t(bytes) + 2 * guard, block));
  unsigned char* data = block.base + guard;
  if (guard_) {
    memset(block.base, kGuardPattern, guard);
    memset(data, 0xFF, size_t(bytes));  // all ones is NaN in f32, f16 and bf16
    memset(data + bytes, kGuardPattern, guard);
  }
  {
    std::lock_guard lock(mutex_);
    live_bytes_ += bytes;
    ++live_buffers_;
  }
  out = std::make_shared<CpuBuffer>(shared_from_this(), block, data, bytes);
  return {};
}

MemoryStats Allocator::stats() const {
  std::lock_guard lock(mutex_);
  return {live_bytes_, live_buffers_, int64_t(cached_)};
}

void Allocator::report(const std::string& defect) {
  std::lock_guard lock(mutex_);
  if (defect_.empty()) defect_ = defect;
}

std::string Allocator::take_defect() {
  std::lock_guard lock(mutex_);
  return std::exchange(defect_, std::string());
}

}  // namespace lapidary
