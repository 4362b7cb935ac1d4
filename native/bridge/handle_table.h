// handle_table.h: native objects as numbers that JavaScript may hold.
//
// A handle packs a slot, a type tag and a generation into 52 bits (exact in a double). A stale handle (disposed), one
// of another type, or one that another environment made is told apart from a live one without touching what it once
// named: generations start at a random number in each environment.
#pragma once
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/status.h"

namespace lapidary {

enum class HandleType : uint8_t { tensor = 1, stream = 2, device = 3, program = 4 };

template <class T, HandleType kType>
class HandleTable {
 public:
  HandleTable() : first_generation_(std::random_device()() & kGenerationMask) {}

  double add(T value) {
    uint32_t slot;
    if (free_.empty()) {
      slot = uint32_t(slots_.size());
      slots_.push_back({std::move(value), first_generation_, true});
    } else {
      slot = free_.back();
      free_.pop_back();
      slots_[slot].value = std::move(value);
      slots_[slot].live = true;
    }
    return double((uint64_t(slots_[slot].generation) << 27) | (uint64_t(kType) << 24) | slot);
  }

  // Null and an error where the handle is not live. `what` names the argument.
  T* find(double handle, const char* what, Status& status) {
    Slot* slot = nullptr;
    const uint64_t bits = handle >= 1 && handle < 0x1p52 ? uint64_t(handle) : 0;
    if (((bits >> 24) & 7) != uint64_t(kType) || (bits & 0xffffff) >= slots_.size()) {
      status = error(Code::kForeignHandle, "%s: expected a handle made by this environment", what);
      return nullptr;
    }
    slot = &slots_[bits & 0xffffff];
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
    for (uint32_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot].live && predicate(slots_[slot].value)) release(slot);
    }
  }

  template <class Function>
  void for_each(Function function) {
    for (Slot& slot : slots_) {
      if (slot.live) function(slot.value);
    }
  }

 private:
  void release(uint32_t index) {
    Slot& slot = slots_[index];
    slot.value = T();
    slot.live = false;
    slot.generation = (slot.generation + 1) & kGenerationMask;
    free_.push_back(index);
  }

  static constexpr uint32_t kGenerationMask = (1u << 25) - 1;
  struct Slot {
    T value;
    uint32_t generation;
    bool live;
  };
  const uint32_t first_generation_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
};

}  // namespace lapidary
