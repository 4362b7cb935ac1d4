// handle_table.h: native objects as numbers that JavaScript may hold.
//
// A handle packs a slot, a type tag and a generation into 52 bits (exact in a double). A stale handle (disposed), one
// of another type, or one that another environment made is told apart from a live one without touching what it once
// named: generations start at a random number in each environment.
#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <random>
#include <utility>
#include <vector>

#include "core/status.h"

namespace lapidary {

enum class HandleType : uint8_t { tensor = 1, stream = 2, device = 3, program = 4 };

static constexpr uint32_t kMaxHandles = 1u << 24;  // live ones of a type: the bits of a slot

template <class T, HandleType kType, uint32_t kCapacity = kMaxHandles>
class HandleTable {
 public:
  HandleTable() : first_generation_(std::random_device()() & kGenerationMask) {}

  // `what` names what it would be in messages.
  Status add(T value, const char* what, double& handle) {
    if (free_ == kNone && count_ == kCapacity)
      return error(Code::kOutOfMemory, "%s: expected at most %u alive, got one more", what, kCapacity);
    if (free_ == kNone && count_ % kChunk == 0) {
      std::unique_ptr<Slot[]> chunk(new (std::nothrow) Slot[kChunk]);
      if (!chunk) return error(Code::kOutOfMemory, "%s: no memory for its handle", what);
      chunks_.push_back(std::move(chunk));
    }
    uint32_t index = free_;
    if (index == kNone) {
      index = count_++;
      at(index).generation = first_generation_;
    } else {
      free_ = at(index).next_free;
    }
    Slot& slot = at(index);
    slot.value = std::move(value);
    slot.live = true;
    handle = double((uint64_t(slot.generation) << 27) | (uint64_t(kType) << 24) | index);
    return {};
  }

  // Null and an error where the handle is not live. `what` names the argument.
  T* find(double handle, const char* what, Status& status) {
    Slot* slot = nullptr;
    const uint64_t bits = handle >= 1 && handle < 0x1p52 ? uint64_t(handle) : 0;
    if (((bits >> 24) & 7) != uint64_t(kType) || (bits & 0xffffff) >= count_) {
      status = error(Code::kForeignHandle, "%s: expected a handle made by this environment", what);
      return nullptr;
    }
    slot = &at(uint32_t(bits & 0xffffff));
    const uint32_t age = (slot->generation - uint32_t(bits >> 27)) & kGenerationMask;
    if (slot->live && age == 0) return &slot->value;
    const uint32_t used = (slot->generation - first_generation_) & kGenerationMask;
    status = age <= used ? error(Code::kDisposed, "%s: it has been disposed", what)
                         : error(Code::kForeignHandle, "%s: expected a handle made by this environment", what);
    return nullptr;
  }

  // Removes and returns the value; false where the handle is not live.
  bool remove(double handle, T& out) {
    Status ignored;
    T* value = find(handle, "", ignored);
    if (!value) return false;
    out = std::move(*value);
    release(uint32_t(uint64_t(handle) & 0xffffff));
    return true;
  }

  template <class Predicate>
  void remove_if(Predicate predicate) {
    for (uint32_t index = 0; index < count_; ++index) {
      if (at(index).live && predicate(at(index).value)) release(index);
    }
  }

  template <class Function>
  void for_each(Function function) {
    for (uint32_t index = 0; index < count_; ++index) {
      if (at(index).live) function(at(index).value);
    }
  }

 private:
  struct Slot {
    T value = {};
    uint32_t generation = 0;
    uint32_t next_free = 0;
    bool live = false;
  };
  static constexpr uint32_t kGenerationMask = (1u << 25) - 1;
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint32_t kChunk = 1024;  // slots never move, and a large table grows without a copy of itself

  Slot& at(uint32_t index) { return chunks_[index / kChunk][index % kChunk]; }

  void release(uint32_t index) {
    Slot& slot = at(index);
    slot.value = T();
    slot.live = false;
    slot.generation = (slot.generation + 1) & kGenerationMask;
    slot.next_free = free_;
    free_ = index;
  }

  const uint32_t first_generation_;
  std::vector<std::unique_ptr<Slot[]>> chunks_;
  uint32_t count_ = 0;  // slots that were ever used
  uint32_t free_ = kNone;
};

}  // namespace lapidary
