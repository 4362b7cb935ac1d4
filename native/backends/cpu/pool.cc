#include "backends/cpu/pool.h"

#include <sched.h>

#include <chrono>
#include <cstdarg>
#include <cstdio>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lapidary {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A short spin, then the processor is offered to others: a partner that was descheduled needs it to arrive.
class Spinner {
 public:
  void wait() {
    if (++turns_ < 4096) {
      relax();
    } else {
      sched_yield();
    }
  }

 private:
  int turns_ = 0;
};

constexpr auto kSpinBeforeSleep = std::chrono::microseconds(50);

// How far to look for a step that streams: what is fetched for one further on may be evicted before it runs.
constexpr size_t kPrefetchSteps = 4;

}  // namespace

void team_barrier(Team& team) {
  if (team.threads == 1) return;
  TeamState& state = *team.state;
  const uint32_t round = state.round.load(std::memory_order_relaxed);
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == uint32_t(team.threads)) {
    state.arrived.store(0, std::memory_order_relaxed);
    state.round.store(round + 1, std::memory_order_release);
    return;
  }
  for (Spinner spinner; state.round.load(std::memory_order_acquire) == round;) spinner.wait();
}

int64_t team_claim(Team& team, int counter, int64_t step) {
  return team.state->counters[team.counter_set][counter].value.fetch_add(step, std::memory_order_relaxed);
}

void team_fail(Team& team, Code code, const char* format, long long first, long long second) {
  TeamState& state = *team.state;
  std::lock_guard lock(state.failure_mutex);
  if (state.failure.code != Code::kOk) return;
  char text[256];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  snprintf(text, sizeof text, format, first, second);
#pragma GCC diagnostic pop
  state.failure = {code, team.step, text};
  state.failed_step.store(team.step, std::memory_order_release);
}

Pool::Pool(int threads, void (*on_thread_start)())
    : threads_(threads), on_thread_start_(on_thread_start), workers_(size_t(threads - 1)) {}

// pthread_create instead of std::thread, which throws where the system has no more threads.
Status Pool::start() {
  for (int thread = 1; thread < threads_; ++thread) {
    Worker& self = workers_[size_t(thread - 1)];
    self.pool = this;
    self.thread = thread;
    const auto entry = [](void* argument) -> void* {
      auto* worker = static_cast<Worker*>(argument);
      worker->pool->worker(worker->thread);
      return nullptr;
    };
    if (pthread_create(&self.id, nullptr, entry, &self) != 0) {
      return error(Code::kOutOfMemory, "Device.open: threads: the system has no thread %d of %d", thread + 1, threads_);
    }
    self.started = true;
  }
  return {};
}

Pool::~Pool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (Worker& worker : workers_) {
    if (worker.started) pthread_join(worker.id, nullptr);
  }
}

bool Pool::run(const Step* steps, size_t count, unsigned char* scratch, const std::atomic<bool>& stop,
               ExecutionError& failure) {
  std::lock_guard lock(run_mutex_);
  steps_ = steps;
  count_ = count;
  scratch_ = scratch;
  stop_ = &stop;
  state_.failed_step.store(SIZE_MAX, std::memory_order_relaxed);
  state_.failure = {};
  if (threads_ > 1) {
    running_.store(threads_ - 1, std::memory_order_relaxed);
    epoch_.fetch_add(1);  // sequentially consistent: pairs with the worker's check after it announced its sleep
    if (sleeping_.load() > 0) epoch_.notify_all();
  }
  work(0);
  // Every worker has left the job before its memory and the counters may be used again. This is also the barrier of the
  // last step.
  for (Spinner spinner; running_.load(std::memory_order_acquire) != 0;) spinner.wait();
  for (auto& set : state_.counters) {
    for (auto& counter : set) counter.value.store(0, std::memory_order_relaxed);
  }
  if (state_.failed_step.load(std::memory_order_acquire) == SIZE_MAX) return true;
  failure = state_.failure;
  return false;
}

// Memory would idle while small ops run and threads wait for each other: of the next few steps, the first that streams
// gets a head start. Returns it, or `first` where there is none.
size_t Pool::prefetch_from(size_t first, const Team& team) const {
  for (size_t i = first; i < count_ && i < first + kPrefetchSteps; ++i) {
    const PrefetchFunction prefetch = static_cast<const Kernel*>(steps_[i].kernel)->prefetch;
    if (!prefetch) continue;
    prefetch(*steps_[i].call, team);
    return i;
  }
  return first;
}

void Pool::work(int thread) {
  Team team;
  team.thread = thread;
  team.threads = threads_;
  team.scratch = scratch_;
  team.state = &state_;
  size_t ahead = prefetch_from(0, team);
  for (size_t i = 0; i < count_; ++i) {
    team.step = i;
    team.counter_set = int(i & 1);
    if (thread == 0) {
      // Last used in step i−1, which everyone has left; next used in step i+1, which nobody enters before this step's
      // barrier.
      for (auto& counter : state_.counters[(i + 1) & 1]) counter.value.store(0, std::memory_order_relaxed);
    }
    static_cast<const Kernel*>(steps_[i].kernel)->run(*steps_[i].call, team);
    if (i + 1 == count_) break;
    if (ahead <= i) ahead = prefetch_from(i + 1, team);
    // One thread looks and, like a failing kernel, tells the others before the barrier: all leave after the same step.
    if (thread == 0 && stop_->load(std::memory_order_relaxed))
      team_fail(team, Code::kDisposed, "the stream was disposed", 0, 0);
    team_barrier(team);
    // A fast thread may already have failed in a later step: that must not stop this one before it gets there.
    if (state_.failed_step.load(std::memory_order_acquire) <= i) break;
  }
}

void Pool::worker(int thread) {
  if (on_thread_start_) on_thread_start_();
  uint32_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    for (int turns = 0; epoch_.load(std::memory_order_acquire) == seen; ++turns) {
      relax();
      if (turns % 64 != 63) continue;
      // Nothing to do for a microsecond: on a machine with as many cores as threads here, the JS thread wants one.
      sched_yield();
      if (std::chrono::steady_clock::now() - start < kSpinBeforeSleep) continue;
      sleeping_.fetch_add(1);
      epoch_.wait(seen);
      sleeping_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    work(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace lapidary
