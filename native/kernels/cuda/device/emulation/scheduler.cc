#include "kernels/cuda/device/emulation/scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

// ── switching stacks ────────────────────────────────────────────────────────────────────────────────────────────────
// Saves the registers that a call preserves, stores the stack pointer in *from, and goes on where `to` stopped.
extern "C" void lapidary_emulation_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl lapidary_emulation_switch
.hidden lapidary_emulation_switch
.type lapidary_emulation_switch, @function
lapidary_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lapidary_emulation_switch, .-lapidary_emulation_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl lapidary_emulation_switch
.hidden lapidary_emulation_switch
.type lapidary_emulation_switch, @function
lapidary_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size lapidary_emulation_switch, .-lapidary_emulation_switch
)");
#else
#error "the emulation of CUDA threads knows x86-64 and arm64"
#endif

namespace lapidary::emulation {

thread_local Thread* current __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

constexpr size_t kStackBytes = size_t(128) << 10;
constexpr size_t kPageBytes = 4096;
constexpr size_t kCanaryBytes = 256;
constexpr unsigned char kPoison = 0xff;  // NaN in every float format
constexpr unsigned char kCanary = 0xa5;
constexpr size_t kMaxPending = 512;  // of a block; beyond, stores become visible, as they may at any time
constexpr size_t kMaxLate = size_t(1) << 16;
constexpr uint64_t kMaxIdleSwitches = 4000000;  // between two steps forward: a few seconds

std::atomic<uint64_t> launches{0}, switches{0};

// Stacks are kept: mapping one costs more than running a small kernel on it. Below each lies a page that nobody may touch.
// Never destroyed: streams may still run while the process ends.
std::mutex stack_mutex;
std::vector<unsigned char*>& spare_stacks = *new std::vector<unsigned char*>();

unsigned char* take_stack() {
  {
    std::lock_guard lock(stack_mutex);
    if (!spare_stacks.empty()) {
      unsigned char* stack = spare_stacks.back();
      spare_stacks.pop_back();
      return stack;
    }
  }
  void* mapping = mmap(nullptr, kStackBytes + kPageBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  mprotect(mapping, kPageBytes, PROT_NONE);
  return static_cast<unsigned char*>(mapping) + kPageBytes;
}

uint64_t next_random(uint64_t& state) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * 0x2545F4914F6CDD1Dull) >> 32;
}

}  // namespace

struct Launch {
  LaunchOptions options;
  Body body = nullptr;
  const void* params = nullptr;
  void* main = nullptr;  // the scheduler's stack pointer
  uint64_t random = 1;
  bool by_priority = false;
  bool late_stores = true;
  uint64_t switched = 0;
  uint64_t idle = 0;  // switches since something last moved on
  size_t last_range = 0;
  std::vector<Range> ranges;
  std::vector<Block> blocks;  // resident
  std::vector<std::vector<unsigned char>> shared;
  std::vector<unsigned char*> stacks;
  std::vector<PendingStore> late;  // stores of blocks that are done
  std::string error;
};

namespace {

Launch& launch_of(const Thread& thread) { return *thread.warp->block->launch; }

void leave() {  // to the scheduler
  Thread& me = *current;
  lapidary_emulation_switch(&me.stack_pointer, launch_of(me).main);
}

[[noreturn]] void enter() {
  Thread& me = *current;
  Block& block = *me.warp->block;
  block.launch->body(block.launch->params, block.shared);
  me.done = true;
  me.warp->runnable &= ~(1u << me.lane);
  --block.remaining;
  block.launch->idle = 0;
  for (;;) leave();
}

void* prepare_stack(unsigned char* stack) {
  auto** top = reinterpret_cast<void**>(stack + kStackBytes);
#if defined(__x86_64__)
  *--top = nullptr;  // enter() has no caller
  *--top = reinterpret_cast<void*>(&enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  top -= 20;
  memset(top, 0, 160);
  top[11] = reinterpret_cast<void*>(&enter);  // x30
#endif
  return top;
}

void flush(Block& block) {
  for (const PendingStore& store : block.pending) memcpy(store.at, store.data, store.bytes);
  block.pending.clear();
  block.pending_begin = block.pending_end = nullptr;
}

bool overlaps_pending(const Block& block, const void* at, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(at);
  return begin < block.pending_end && begin + bytes > block.pending_begin;
}

std::string place(const Thread& thread) {
  const Block& block = *thread.warp->block;
  char text[160];
  snprintf(text, sizeof text, "block (%d, %d, %d), thread %d, seed %llu", block.x, block.y, block.z, thread.index,
           static_cast<unsigned long long>(block.launch->options.seed));
  return text;
}

const char* name(Operation operation) {
  static const char* const names[] = {"none",     "warp_barrier", "shuffle", "warp_ballot",
                                      "mma_bf16", "mma_f16",      "mma_i8",  "ldmatrix"};
  return names[size_t(operation)];
}

void start_block(Launch& launch, size_t slot, int64_t index) {
  Block& block = launch.blocks[slot];
  const Dimensions& grid = launch.options.grid;
  block.launch = &launch;
  block.x = int(index % grid.x);
  block.y = int(index / grid.x % grid.y);
  block.z = int(index / grid.x / grid.y);
  block.threads = block.remaining = launch.options.threads;
  block.epoch = 0;
  block.shared_bytes = launch.options.shared_bytes;
  std::vector<unsigned char>& memory = launch.shared[slot];
  const auto first = reinterpret_cast<uintptr_t>(memory.data()) + kCanaryBytes;
  block.shared = reinterpret_cast<unsigned char*>((first + 1023) / 1024 * 1024);
  memset(memory.data(), kCanary, memory.size());
  memset(block.shared, kPoison, block.shared_bytes);
  const int warps = block.threads / kWarp;
  block.thread.resize(size_t(block.threads));
  block.warp.resize(size_t(warps));
  block.waiting.assign(size_t(16 * warps), 0);
  for (Barrier& barrier : block.barrier) barrier = {};
  for (int w = 0; w < warps; ++w) {
    Warp& warp = block.warp[size_t(w)];
    warp.block = &block;
    warp.threads = &block.thread[size_t(w * kWarp)];
    warp.runnable = 0xffffffffu;
    warp.arrived = 0;
    warp.stretch = 0;
    warp.priority = uint32_t(next_random(launch.random));
  }
  for (int t = 0; t < block.threads; ++t) {
    Thread& thread = block.thread[size_t(t)];
    thread.warp = &block.warp[size_t(t / kWarp)];
    thread.index = t;
    thread.lane = t % kWarp;
    thread.done = false;
    thread.copies.clear();
    thread.group_ends.clear();
    thread.meetings = 0;
    thread.visits.clear();
    thread.stack_pointer = prepare_stack(launch.stacks[slot * size_t(launch.options.threads) + size_t(t)]);
  }
}

void finish_block(Launch& launch, size_t slot) {
  Block& block = launch.blocks[slot];
  for (Warp& warp : block.warp) count_accesses(warp);
  const std::vector<unsigned char>& memory = launch.shared[slot];
  const unsigned char* end = memory.data() + memory.size();
  const bool intact = std::all_of(memory.data(), static_cast<const unsigned char*>(block.shared),
                                  [](unsigned char c) { return c == kCanary; }) &&
                      std::all_of(static_cast<const unsigned char*>(block.shared) + block.shared_bytes, end,
                                  [](unsigned char c) { return c == kCanary; });
  if (!intact && launch.error.empty()) {
    launch.error = "a write outside the block's " + std::to_string(block.shared_bytes) + " bytes of shared memory; " +
                   place(block.thread[0]);
  }
  // Other blocks may not see its stores before the launch is done.
  launch.late.insert(launch.late.end(), block.pending.begin(), block.pending.end());
  block.pending.clear();
  block.pending_begin = block.pending_end = nullptr;
  if (launch.late.size() > kMaxLate) {
    for (const PendingStore& store : launch.late) memcpy(store.at, store.data, store.bytes);
    launch.late.clear();
  }
}

// The warp that runs next; null: none can.
Warp* choose(Launch& launch) {
  size_t total = 0;
  for (const Block& block : launch.blocks) total += block.remaining ? block.warp.size() : 0;
  if (total == 0) return nullptr;
  const size_t start = launch.options.schedule == Schedule::friendly ? size_t(launch.switched) % total
                                                                     : size_t(next_random(launch.random)) % total;
  Warp *first = nullptr, *after = nullptr, *best = nullptr;
  size_t position = 0;
  for (Block& block : launch.blocks) {
    if (!block.remaining) continue;
    for (Warp& warp : block.warp) {
      const size_t index = position++;
      if (!warp.runnable) continue;
      if (!first) first = &warp;
      if (!after && index >= start) after = &warp;
      if (!best || warp.priority > best->priority) best = &warp;
    }
  }
  if (launch.by_priority) return best;
  return after ? after : first;
}

void report_deadlock(Launch& launch) {
  for (Block& block : launch.blocks) {
    if (!block.remaining) continue;
    for (Thread& thread : block.thread) {
      if (thread.done) continue;
      const bool at_operation = thread.warp->arrived >> thread.lane & 1;
      launch.error = std::string("deadlock: ") + std::to_string(block.remaining) + " of " +
                     std::to_string(block.threads) + " threads wait, the first at " +
                     (at_operation ? name(thread.warp->operation) : "a barrier") + "; " + place(thread);
      return;
    }
  }
}

void run_blocks(Launch& launch) {
  const Dimensions& grid = launch.options.grid;
  const int64_t total = int64_t(grid.x) * grid.y * grid.z;
  int64_t next = 0;
  for (size_t slot = 0; slot < launch.blocks.size(); ++slot) start_block(launch, slot, next++);
  for (;;) {
    Warp* warp = choose(launch);
    if (!warp) break;
    const unsigned offset =
        launch.options.schedule == Schedule::friendly ? 0 : unsigned(next_random(launch.random)) % kWarp;
    const uint32_t rotated = offset ? (warp->runnable >> offset | warp->runnable << (kWarp - offset)) : warp->runnable;
    current = &warp->threads[(unsigned(__builtin_ctz(rotated)) + offset) % kWarp];
    ++launch.switched;
    if (++launch.idle > kMaxIdleSwitches) {
      launch.error = "no progress: threads wait for something that no other thread does; " + place(*current);
      return;
    }
    lapidary_emulation_switch(&launch.main, current->stack_pointer);
    if (!launch.error.empty()) return;
    Block& block = *warp->block;
    if (block.remaining) continue;
    const size_t slot = size_t(&block - launch.blocks.data());
    finish_block(launch, slot);
    if (!launch.error.empty()) return;
    if (next < total) start_block(launch, slot, next++);
  }
  for (const Block& block : launch.blocks) {
    if (block.remaining) return report_deadlock(launch);
  }
  for (const PendingStore& store : launch.late) memcpy(store.at, store.data, store.bytes);
}

}  // namespace

Counts counts() {
  Counts counts;
  counts.launches = launches.load();
  counts.switches = switches.load();
  add_bank_counts(counts);
  return counts;
}

std::string run(const LaunchOptions& options, Body body, const void* params) {
  const int64_t total = int64_t(options.grid.x) * options.grid.y * options.grid.z;
  if (options.threads < kWarp || options.threads > 1024 || options.threads % kWarp != 0) {
    return "a block of " + std::to_string(options.threads) + " threads: expected whole warps, at most 1024 threads";
  }
  if (total < 1 || options.grid.y > 65535 || options.grid.z > 65535)
    return "a grid of no blocks, or beyond the limits of y and z";
  Launch launch;
  launch.options = options;
  launch.body = body;
  launch.params = params;
  launch.random = options.seed * 0x9E3779B97F4A7C15ull + 1;
  for (int i = 0; i < 4; ++i) next_random(launch.random);
  if (options.ranges) launch.ranges = *options.ranges;
  const bool adversarial = options.schedule == Schedule::adversarial;
  launch.by_priority = adversarial && next_random(launch.random) % 2;
  launch.late_stores = adversarial && next_random(launch.random) % 4;
  // At least two blocks at once where there are two: what blocks owe each other shows only then.
  const int64_t resident = std::min<int64_t>(total, adversarial ? 2 + next_random(launch.random) % 3 : 2);
  launch.blocks.resize(size_t(resident));
  launch.shared.resize(size_t(resident));
  for (auto& memory : launch.shared) memory.resize(options.shared_bytes + 1024 + 2 * kCanaryBytes);
  bool stacks = true;
  for (int64_t i = 0; i < resident * options.threads && stacks; ++i) {
    launch.stacks.push_back(take_stack());
    stacks = launch.stacks.back() != nullptr;
  }
  Thread* outer = current;
  if (stacks) {
    run_blocks(launch);
  } else {
    launch.stacks.pop_back();
    launch.error = "no memory for the threads' stacks";
  }
  current = outer;
  {
    std::lock_guard lock(stack_mutex);
    spare_stacks.insert(spare_stacks.end(), launch.stacks.begin(), launch.stacks.end());
  }
  launches.fetch_add(1, std::memory_order_relaxed);
  switches.fetch_add(launch.switched, std::memory_order_relaxed);
  return launch.error;
}

Dimensions grid_of(const Thread& thread) { return launch_of(thread).options.grid; }
bool counts_banks(const Thread& thread) { return launch_of(thread).options.count_banks; }

void fail(const char* format, ...) {
  Thread& me = *current;
  Launch& launch = launch_of(me);
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (launch.error.empty()) launch.error = std::string(text) + "; " + place(me);
  for (;;) leave();
}

void fail_divergent(Operation operation, int detail) {
  const Warp& warp = *current->warp;
  fail("divergence: a lane comes to %s (%d) while others of its warp are at %s (%d)", name(operation), detail,
       name(warp.operation), warp.detail);
}

void switch_away() {
  Thread& me = *current;
  Warp& warp = *me.warp;
  if (!warp.runnable) return leave();
  // The next lane of the same warp, without a detour: most switches are of this kind.
  const uint32_t above = warp.runnable & ~(0xffffffffu >> (31 - me.lane));
  Thread& next = warp.threads[__builtin_ctz(above ? above : warp.runnable)];
  ++launch_of(me).switched;
  current = &next;
  lapidary_emulation_switch(&me.stack_pointer, next.stack_pointer);
}

void offer_turn() {
  Thread& me = *current;
  Launch& launch = launch_of(me);
  if (launch.options.schedule == Schedule::adversarial) {
    if (next_random(launch.random) % 2) return;
    me.warp->priority = uint32_t(next_random(launch.random));
  }
  leave();
}

void barrier(int id, int threads) {
  Thread& me = *current;
  Warp& warp = *me.warp;
  Block& block = *warp.block;
  ++me.meetings;
  if (id < 0 || id > 15) fail("barrier %d: expected 0 to 15", id);
  if (threads % kWarp != 0 || threads > block.threads)
    fail("barrier of %d threads in a block of %d", threads, block.threads);
  Barrier& barrier = block.barrier[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads)
    fail("barrier %d: one thread says %d threads, another %d", id, barrier.expected, threads);
  const size_t row = size_t(id) * block.warp.size();
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    for (size_t w = 0; w < block.warp.size(); ++w) {
      block.warp[w].runnable |= block.waiting[row + w];
      block.waiting[row + w] = 0;
    }
    ++block.epoch;
    block.launch->idle = 0;
    return offer_turn();
  }
  block.waiting[row + size_t(&warp - block.warp.data())] |= 1u << me.lane;
  warp.runnable &= ~(1u << me.lane);
  switch_away();
}

// What the thread itself stored, and what it saw before the block's last barrier, becomes visible.
void fence() {
  Thread& me = *current;
  Block& block = *me.warp->block;
  size_t kept = 0;
  for (const PendingStore& store : block.pending) {
    if (store.by == &me || store.epoch < block.epoch) {
      memcpy(store.at, store.data, store.bytes);
    } else {
      block.pending[kept++] = store;
    }
  }
  block.pending.resize(kept);
  if (kept == 0) block.pending_begin = block.pending_end = nullptr;
}

void check_global(const void* at, size_t bytes, bool writes) {
  const auto* begin = static_cast<const unsigned char*>(at);
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("misaligned access of %zu bytes at %p", bytes, at);
  Launch& launch = launch_of(*current);
  if (launch.ranges.empty()) return;
  const auto holds = [&](const Range& range) {
    return begin >= range.begin && begin + bytes <= range.end && (!writes || range.writable);
  };
  if (holds(launch.ranges[launch.last_range])) return;
  for (size_t i = 0; i < launch.ranges.size(); ++i) {
    if (!holds(launch.ranges[i])) continue;
    launch.last_range = i;
    return;
  }
  // The nearest one tells what was meant.
  const Range* nearest = nullptr;
  for (const Range& range : launch.ranges) {
    const auto distance = [&](const Range& r) { return begin < r.begin ? r.begin - begin : begin - r.begin; };
    if (!nearest || distance(range) < distance(*nearest)) nearest = &range;
  }
  fail(
      "%s of %zu bytes of global memory outside what the call may %s: %lld bytes after the start of a tensor of %lld "
      "bytes%s",
      writes ? "write" : "read", bytes, writes ? "write" : "read", static_cast<long long>(begin - nearest->begin),
      static_cast<long long>(nearest->end - nearest->begin), writes && !nearest->writable ? " (read-only)" : "");
}

void check_shared(const void* at, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(at);
  const Block& block = *current->warp->block;
  if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("misaligned access of %zu bytes of shared memory", bytes);
  if (begin >= block.shared && begin + bytes <= block.shared + block.shared_bytes) return;
  fail("access of %zu bytes outside shared memory: at byte %lld of %zu", bytes,
       static_cast<long long>(begin - block.shared), block.shared_bytes);
}

void read_global(const void* at, void* value, size_t bytes) {
  memcpy(value, at, bytes);
  const Block& block = *current->warp->block;
  if (!overlaps_pending(block, at, bytes)) return;
  const auto* begin = static_cast<const unsigned char*>(at);
  for (const PendingStore& store : block.pending) {
    const unsigned char* from = std::max(begin, static_cast<const unsigned char*>(store.at));
    const unsigned char* to = std::min(begin + bytes, static_cast<const unsigned char*>(store.at) + store.bytes);
    if (from < to)
      memcpy(static_cast<unsigned char*>(value) + (from - begin), store.data + (from - store.at), size_t(to - from));
  }
}

void write_global(void* at, const void* value, size_t bytes) {
  Block& block = *current->warp->block;
  block.launch->idle = 0;
  if (!block.launch->late_stores) {
    memcpy(at, value, bytes);
    return;
  }
  if (block.pending.size() >= kMaxPending) flush(block);
  auto* begin = static_cast<unsigned char*>(at);
  PendingStore store{begin, current, block.epoch, uint32_t(bytes), {}};
  memcpy(store.data, value, bytes);
  if (block.pending.empty()) {
    block.pending_begin = begin;
    block.pending_end = begin + bytes;
  } else {
    block.pending_begin = std::min(block.pending_begin, static_cast<const unsigned char*>(begin));
    block.pending_end = std::max(block.pending_end, static_cast<const unsigned char*>(begin) + bytes);
  }
  block.pending.push_back(store);
}

void prepare_atomic(void* at, size_t bytes) {
  Block& block = *current->warp->block;
  const auto* begin = static_cast<const unsigned char*>(at);
  if (begin >= block.shared && begin < block.shared + block.shared_bytes) {
    check_shared(at, bytes);
    offer_turn();
    return;
  }
  check_global(at, bytes, true);
  offer_turn();
  if (overlaps_pending(block, at, bytes)) flush(block);
}

// ── asynchronous copies ─────────────────────────────────────────────────────────────────────────────────────────────
namespace {

void land(const Copy& copy) {
  if (copy.valid) {
    memcpy(copy.to, copy.from, size_t(copy.bytes));
  } else {
    memset(copy.to, 0, size_t(copy.bytes));
  }
}

}  // namespace

void copy_async(void* shared, const void* global, int bytes, bool valid) {
  Thread& me = *current;
  access_shared(shared, size_t(bytes));
  if (valid) check_global(global, size_t(bytes), false);
  const Copy copy{static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, valid};
  if (launch_of(me).options.schedule == Schedule::friendly) return land(copy);
  memset(shared, kPoison, size_t(bytes));
  me.copies.push_back(copy);
}

void copy_commit() { current->group_ends.push_back(current->copies.size()); }

void copy_wait(int open) {
  Thread& me = *current;
  if (me.group_ends.size() <= size_t(open)) return;
  const size_t groups = me.group_ends.size() - size_t(open);
  const size_t landed = me.group_ends[groups - 1];
  for (size_t i = 0; i < landed; ++i) land(me.copies[i]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + ptrdiff_t(landed));
  me.group_ends.erase(me.group_ends.begin(), me.group_ends.begin() + ptrdiff_t(groups));
  for (size_t& end : me.group_ends) end -= landed;
}

}  // namespace lapidary::emulation
