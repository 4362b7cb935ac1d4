#include <algorithm>

#include "runtime/program.h"

namespace lapidary {
namespace {
constexpr int64_t kArenaAlignment = 128;
}

int64_t plan_arena(std::vector<Lifetime>& lifetimes) {
  std::vector<Lifetime*> by_size;
  for (Lifetime& lifetime : lifetimes) by_size.push_back(&lifetime);
  std::stable_sort(by_size.begin(), by_size.end(),
                   [](const Lifetime* a, const Lifetime* b) { return a->bytes > b->bytes; });

  int64_t total = 0;
  std::vector<Lifetime*> placed;  // by offset
  for (Lifetime* lifetime : by_size) {
    // The lowest gap between those that live at the same time. First fit instead of the paper's best fit: equal on
    // transformer layers, and one pass.
    int64_t offset = 0;
    for (const Lifetime* other : placed) {
      if (other->last < lifetime->first || lifetime->last < other->first) continue;
      if (offset + lifetime->bytes <= other->offset) break;
      const int64_t end = other->offset + other->bytes;
      offset = std::max(offset, (end + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment);
    }
    lifetime->offset = offset;
    total = std::max(total, offset + lifetime->bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), lifetime,
                                   [](const Lifetime* a, const Lifetime* b) { return a->offset < b->offset; }),
                  lifetime);
  }
  return total;
}

}  // namespace lapidary
