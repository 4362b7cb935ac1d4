// file_reading.h: bytes of a file into memory, by all threads of a pool: a copy out of the page cache is bound by one
// core's memory traffic and, in fresh memory, by the zeroing of its pages.
#pragma once
#include <atomic>

#include "backends/cpu/pool.h"

namespace lapidary {

// What read_file_kernel's threads share. Fill the first four; the rest says how it went.
struct FileReading {
  int descriptor = -1;
  int64_t offset = 0;
  unsigned char* to = nullptr;
  int64_t bytes = 0;
  std::atomic<int64_t> first_missing{INT64_MAX};  // relative to `offset`; what lies before it was read
  std::atomic<int> error{0};                      // errno of a read that failed
};

// A kernel whose call holds a pointer to a FileReading (set_file_reading).
extern const Kernel read_file_kernel;
void set_file_reading(Call& call, FileReading* reading);

}  // namespace lapidary
