// kernel.h: what a CPU kernel is, and the team of threads it runs on. Only plain data and out-of-line functions: ISA
// translation units include this file (see core/inline.h).
//
// A kernel is one function that every thread of the team calls with the same Call (single program, multiple data). It
// splits the work itself by `thread` of `threads`, or claims pieces from a shared counter, and may use barriers between
// phases. It must give the same bits for any number of threads. It may not allocate, lock, log or look anything up by
// name.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/error_code.h"
#include "ops/call.h"

namespace lapidary {

struct TeamState;  // shared by the team: barrier, counters, error (backends/cpu/team.cc)

struct Team {
  int thread = 0;  // 0 … threads−1
  int threads = 1;
  unsigned char* scratch = nullptr;  // as many bytes as the kernel's scratch function asked for; shared; 128-byte
                                     // aligned; contents undefined
  TeamState* state = nullptr;
  size_t step = 0;  // which call of the run this is, and which counters it uses: for the functions below
  int counter_set = 0;
};

// Waits until every thread of the team has come here. Costs about 0.2 µs when all are running.
void team_barrier(Team& team);

// Claims the next `step` pieces of work and returns the first one's index: 0, step, 2·step … Each call of a kernel has
// kTeamCounters counters that start at 0; a kernel with several phases takes one for each.
static constexpr int kTeamCounters = 4;
int64_t team_claim(Team& team, int counter, int64_t step);

// Records that device data was bad (an index out of range). The first report of a call wins and becomes the stream's
// sticky error. The kernel must go on without harm: skip the piece, leave defined output. `format` takes two integers
// (%lld).
void team_fail(Team& team, Code code, const char* format, long long first, long long second);

using KernelFunction = void (*)(const Call& call, Team& team);
using ScratchFunction = size_t (*)(const Call& call, int threads);

// Fetches the head of what this thread of the team will read first when the call runs, while calls before it still do. A
// hint: nothing is read, so calls in between may still write it.
using PrefetchFunction = void (*)(const Call& call, const Team& team);

struct Kernel {
  OpId op;
  KernelFunction run;
  ScratchFunction scratch;    // null: none
  PrefetchFunction prefetch;  // null: nothing worth it
};

// What one (stem, ISA) translation unit exports: `extern "C" const KernelSet lapidary_<stem>_<isa>`.
struct KernelSet {
  const Kernel* kernels;
  int count;
};

// The half-open range of `count` items that belongs to this thread; ranges differ by at most `granule`.
struct Range {
  int64_t begin, end;
};
LAPIDARY_INLINE Range team_range(const Team& team, int64_t count, int64_t granule = 1) {
  const int64_t granules = (count + granule - 1) / granule;
  const int64_t begin = granules * team.thread / team.threads * granule;
  const int64_t end = granules * (team.thread + 1) / team.threads * granule;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace lapidary
