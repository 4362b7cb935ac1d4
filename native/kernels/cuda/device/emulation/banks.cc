// banks.cc: conflicts on the banks of shared memory. There are 32 banks of four bytes; a cycle serves one word of each, to as many lanes as
// want it. Lanes that want different words of one bank take turns.
//
// ldmatrix comes with the rows of all lanes at once. The lanes of an ordinary access come one after another, each when its fibre runs: what
// belongs together is told by the instruction (the address that the access returns to), and by how often the lane has come to it since its
// warp last met at an operation or a barrier. That is the hardware's order for a warp that stays together, as compilers keep it where the
// code does not part it.
#include <algorithm>
#include <atomic>

#include "kernels/cuda/device/emulation/scheduler.h"

namespace lapidary::emulation {
namespace {

std::atomic<uint64_t> matrix_loads{0}, bank_conflicts{0}, shared_accesses{0}, shared_conflicts{0};

constexpr uint32_t kBanks = 32;

// Cycles that lanes first … first + count − 1 take, in which each bank serves one word.
uint32_t cycles(const SharedAccess& access, int first, int count) {
  uint32_t words[kBanks][kWarp];
  uint32_t uses[kBanks] = {};
  uint32_t most = 0;
  for (int lane = first; lane < first + count; ++lane) {
    if (!(access.lanes >> lane & 1)) continue;
    const uint32_t begin = access.offset[lane] / 4, end = (access.offset[lane] + access.bytes + 3) / 4;
    for (uint32_t word = begin; word < end; ++word) {
      uint32_t& used = uses[word % kBanks];
      uint32_t* of = words[word % kBanks];
      if (std::find(of, of + used, word) != of + used) continue;
      of[used++] = word;
      most = std::max(most, used);
    }
  }
  return most;
}

// 8 bytes go by half a warp at a time, 16 by a quarter.
uint64_t conflicts(const SharedAccess& access) {
  const int together = access.bytes <= 4 ? 32 : access.bytes == 8 ? 16 : 8;
  uint64_t sum = 0;
  for (int first = 0; first < kWarp; first += together) {
    const uint32_t taken = cycles(access, first, together);
    sum += taken > 1 ? taken - 1 : 0;
  }
  return sum;
}

}  // namespace

void count_accesses(Warp& warp) {
  uint64_t sum = 0;
  for (const SharedAccess& access : warp.accesses) sum += conflicts(access);
  shared_accesses.fetch_add(warp.accesses.size(), std::memory_order_relaxed);
  shared_conflicts.fetch_add(sum, std::memory_order_relaxed);
  warp.accesses.clear();
}

void access_shared(const void* at, size_t bytes) {
  check_shared(at, bytes);
  Thread& me = *current;
  if (!counts_banks(me)) return;
  const void* site = __builtin_return_address(0);
  Warp& warp = *me.warp;
  // One lane gets beyond a meeting when all have come to it: what they did before is complete.
  if (warp.stretch != me.meetings) {
    count_accesses(warp);
    warp.stretch = me.meetings;
    for (int lane = 0; lane < kWarp; ++lane) {
      warp.threads[lane].visits.clear();
      warp.threads[lane].next_access = 0;
    }
  }
  auto visits = std::find_if(me.visits.begin(), me.visits.end(), [=](const Visits& v) { return v.site == site; });
  if (visits == me.visits.end()) visits = me.visits.insert(visits, {site, 0});
  const uint32_t visit = visits->count++;
  const auto offset = uint32_t(static_cast<const unsigned char*>(at) - warp.block->shared);
  // Lanes mostly do the same in the same order.
  for (size_t i = 0; i < warp.accesses.size(); ++i) {
    const size_t index = (me.next_access + i) % warp.accesses.size();
    SharedAccess& access = warp.accesses[index];
    if (access.site != site || access.visit != visit) continue;
    access.lanes |= 1u << me.lane;
    access.offset[me.lane] = offset;
    me.next_access = index + 1;
    return;
  }
  SharedAccess access = {site, visit, 1u << me.lane, uint32_t(bytes), {}};
  access.offset[me.lane] = offset;
  warp.accesses.push_back(access);
  me.next_access = warp.accesses.size();
}

// Eight rows of 16 bytes pass at once where they lie in different banks.
void count_matrix_load(const void* const* rows, int matrices) {
  uint64_t sum = 0;
  for (int matrix = 0; matrix < matrices; ++matrix) {
    int uses[8] = {};
    int most = 0;
    for (int row = 0; row < 8; ++row) {
      const void* at = rows[matrix * 8 + row];
      bool seen = false;
      for (int other = 0; other < row; ++other) seen = seen || rows[matrix * 8 + other] == at;
      if (!seen) most = std::max(most, ++uses[reinterpret_cast<uintptr_t>(at) / 16 % 8]);
    }
    sum += uint64_t(most - 1);
  }
  matrix_loads.fetch_add(1, std::memory_order_relaxed);
  if (sum) bank_conflicts.fetch_add(sum, std::memory_order_relaxed);
}

void add_bank_counts(Counts& counts) {
  counts.matrix_loads = matrix_loads.load();
  counts.bank_conflicts = bank_conflicts.load();
  counts.shared_accesses = shared_accesses.load();
  counts.shared_conflicts = shared_conflicts.load();
}

}  // namespace lapidary::emulation
