// scheduler.h: runs a grid of blocks on the host. Every thread is a fibre; who runs when is decided by an adversary.
//
// A friendly emulator (round robin, everything visible at once) passes kernels whose barriers are missing. This one
//   * runs one warp as far as it can go before another, of several blocks that are resident at once, in random order or by
//     random priorities, seeded: a failure is repeated by its seed;
//   * delivers asynchronous copies as late as the wait that covers them allows, their destination poisoned from the start;
//   * shows a block's global stores to other blocks only after memory_fence(), or at the end;
//   * fills shared memory with NaN before a block starts;
//   * checks the address, size and alignment of every access that goes through the device layer: shared memory against the
//     block's, global memory against what the call may read and write.
// A violation ends the launch with a text; it never ends the process. What it cannot tell is speed, and what only the hardware's own
// ordering rules could break: atomics and fences are stronger here than relaxed atomics are there.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lapidary::emulation {

static constexpr int kWarp = 32;

// Global memory that a launch may touch.
struct Range {
  const unsigned char* begin = nullptr;
  const unsigned char* end = nullptr;
  bool writable = false;
};

struct Dimensions {
  int x = 1, y = 1, z = 1;
};

enum class Schedule : uint8_t {
  adversarial,
  friendly,  // round robin, copies and stores visible at once: what the controls show to be too weak
};

struct LaunchOptions {
  Dimensions grid;
  int threads = kWarp;
  size_t shared_bytes = 0;
  uint64_t seed = 1;
  Schedule schedule = Schedule::adversarial;
  // Empty: addresses of global memory are not checked.
  const std::vector<Range>* ranges = nullptr;
  // Counts the conflicts of ordinary accesses to shared memory too (banks.cc), which takes time.
  bool count_banks = false;
};

// What launches did since the process began.
struct Counts {
  uint64_t launches = 0;
  uint64_t switches = 0;        // of fibres
  uint64_t matrix_loads = 0;    // ldmatrix, of a warp
  uint64_t bank_conflicts = 0;  // cycles that those took beyond one per eight rows
  // Of launches that count banks: loads, stores and copies of warps to shared memory, and the cycles that they took beyond the least.
  uint64_t shared_accesses = 0;
  uint64_t shared_conflicts = 0;
};
Counts counts();

using Body = void (*)(const void* params, unsigned char* shared);

// Runs the grid to its end. Returns what was wrong, with block, thread and seed; empty: nothing. Any thread, several at once.
std::string run(const LaunchOptions& options, Body body, const void* params);

// ── for the device layer, on a fibre ────────────────────────────────────────────────────────────────────────────────
struct Warp;
struct Block;
struct Launch;

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid;
};

// How often a lane has come to an instruction since its warp last met.
struct Visits {
  const void* site;
  uint32_t count;
};

// What the lanes of a warp do at one instruction at once.
struct SharedAccess {
  const void* site;
  uint32_t visit;
  uint32_t lanes;
  uint32_t bytes;
  uint32_t offset[kWarp];
};

struct Thread {
  void* stack_pointer = nullptr;
  Warp* warp = nullptr;
  int index = 0;  // in the block
  int lane = 0;
  bool done = false;
  std::vector<Copy> copies;        // not landed yet, in order
  std::vector<size_t> group_ends;  // committed groups: how many of `copies` each group and those before it hold
  uint32_t meetings = 0;           // operations of its warp, and barriers, that it has come to
  std::vector<Visits> visits;      // in its current stretch between two of them
  size_t next_access = 0;          // where in the warp's accesses its next one is likely to be
};

enum class Operation : uint8_t { none, barrier, shuffle, ballot, mma_bf16, mma_f16, mma_i8, ldmatrix };

struct Warp {
  Block* block = nullptr;
  Thread* threads = nullptr;
  uint32_t runnable = 0;  // lanes
  uint32_t arrived = 0;   // lanes at the operation
  uint32_t priority = 0;
  Operation operation = Operation::none;
  int detail = 0;
  uint32_t stretch = 0;  // the meetings after which `accesses` were made
  std::vector<SharedAccess> accesses;
  const void* in[kWarp];
  void* out[kWarp];
};

struct Barrier {
  int expected = 0;
  int arrived = 0;
};

// A store to global memory that other blocks do not see yet.
struct PendingStore {
  unsigned char* at;
  Thread* by;
  uint32_t epoch;  // barriers of the block before it
  uint32_t bytes;
  unsigned char data[16];
};

struct Block {
  Launch* launch = nullptr;
  int x = 0, y = 0, z = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int threads = 0;
  int remaining = 0;  // threads that have not left the kernel
  uint32_t epoch = 0;
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  Barrier barrier[16];
  std::vector<uint32_t> waiting;  // barrier · warps + warp → lanes
  std::vector<PendingStore> pending;
  const unsigned char* pending_begin = nullptr;  // what `pending` lies within
  const unsigned char* pending_end = nullptr;
};

// The fibre that runs on this system thread. initial-exec: it is read at every access.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

Dimensions grid_of(const Thread& thread);
bool counts_banks(const Thread& thread);

// Ends the launch. Does not return to the fibre.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// Lets another fibre run until this one is runnable.
void switch_away();
// Lets another warp run, sometimes: at the points where blocks meet.
void offer_turn();
[[noreturn]] void fail_divergent(Operation operation, int detail);

using Work = void (*)(const void* const* in, void* const* out, int detail);

// A warp's operation: the lane that arrives last does the work of all and goes on; the others wait.
inline void collective(Operation operation, int detail, const void* in, void* out, Work work) {
  Thread& me = *current;
  Warp& warp = *me.warp;
  ++me.meetings;
  if (warp.arrived == 0) {
    warp.operation = operation;
    warp.detail = detail;
  } else if (warp.operation != operation || warp.detail != detail) {
    fail_divergent(operation, detail);
  }
  warp.in[me.lane] = in;
  warp.out[me.lane] = out;
  warp.arrived |= 1u << me.lane;
  if (warp.arrived == 0xffffffffu) {
    warp.arrived = 0;
    if (work) work(warp.in, warp.out, detail);
    warp.runnable = 0xffffffffu;
    return;
  }
  warp.runnable &= ~(1u << me.lane);
  switch_away();
}

void barrier(int id, int threads);
void fence();

// Fails where the access is misaligned or outside what the launch may touch.
void check_global(const void* at, size_t bytes, bool writes);
void check_shared(const void* at, size_t bytes);
// The same before a load or store; counts its conflicts where the launch wants that. The instruction is known by who called this.
__attribute__((noinline)) void access_shared(const void* at, size_t bytes);
void read_global(const void* at, void* value, size_t bytes);
void write_global(void* at, const void* value, size_t bytes);
// Before an atomic: checks the address, lets others run, and makes the block's own earlier stores there visible.
void prepare_atomic(void* at, size_t bytes);

void copy_async(void* shared, const void* global, int bytes, bool valid);
void copy_commit();
void copy_wait(int open);

void count_matrix_load(const void* const* rows, int matrices);
// Counts what a warp has done to shared memory since it last met.
void count_accesses(Warp& warp);
// What banks.cc counted since the process began.
void add_bank_counts(Counts& counts);

}  // namespace lapidary::emulation
