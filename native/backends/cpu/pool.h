// pool.h: the team of threads that executes calls on a CPU device.
//
// The caller of run() is thread 0, the pool's own threads are 1 … threads−1. Within a run the threads meet at a barrier
// after every step and never sleep; between runs a worker spins for about 50 µs (waking a sleeping thread costs 5–50 µs
// in a virtual machine, more than a small op) and then sleeps. The pool is never libuv's.
#pragma once
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <vector>

#include "backends/device.h"
#include "kernels/cpu/kernel.h"

namespace lapidary {

// Shared by the threads of one run; on lines of their own because adjacent lines are fetched in pairs.
struct TeamState {
  struct alignas(128) Counter {
    std::atomic<int64_t> value{0};
  };
  alignas(128) std::atomic<uint32_t> arrived{0};
  alignas(128) std::atomic<uint32_t> round{0};
  // Two sets: thread 0 clears one while a step uses the other.
  Counter counters[2][kTeamCounters];
  // The first failure of the run.
  alignas(128) std::atomic<size_t> failed_step{SIZE_MAX};
  std::mutex failure_mutex;
  ExecutionError failure;
};

class Pool {
 public:
  // `on_thread_start` runs once on each worker (AMX permission is per thread on some kernels).
  Pool(int threads, void (*on_thread_start)());
  ~Pool();

  // Starts the workers; fails where the system has no more threads.
  Status start();

  int threads() const { return threads_; }

  // Runs the steps in order; false and `failure` where one reported an error (the steps after it do not run).
  // Once `stop` is set it fails before the next step. Any thread, one run at a time.
  bool run(const Step* steps, size_t count, unsigned char* scratch, const std::atomic<bool>& stop,
           ExecutionError& failure);

 private:
  struct Worker {
    Pool* pool = nullptr;
    int thread = 0;
    pthread_t id = {};
    bool started = false;
  };
  void worker(int thread);
  void work(int thread);
  size_t prefetch_from(size_t first, const Team& team) const;

  const int threads_;
  void (*on_thread_start_)();
  TeamState state_;
  std::mutex run_mutex_;
  // The current job; published by `epoch_`.
  const Step* steps_ = nullptr;
  size_t count_ = 0;
  unsigned char* scratch_ = nullptr;
  const std::atomic<bool>* stop_ = nullptr;
  alignas(128) std::atomic<uint32_t> epoch_{0};
  alignas(128) std::atomic<int> running_{0};  // workers that have not left the job
  std::atomic<bool> stopping_{false};
  std::atomic<int> sleeping_{0};
  std::vector<Worker> workers_;
};

}  // namespace lapidary
