// device.h: what CUDA kernels are written in: a thin layer over the hardware with two back ends of the same names.
//
//   ptx.h         under nvcc: each function is one instruction, or the CUDA built-in
//   emulation.h   under a C++ compiler: threads are fibres on the host, under adversarial schedules, with every address checked
//
// A kernel is a struct with a static function, which a thread of the grid runs:
//
//   template <class Config>
//   struct RmsNorm {
//     struct Params { … plain data … };
//     static constexpr int kThreads = 256;    // of a block: at most; a multiple of 32
//     static constexpr int kMinBlocks = 2;    // of a multiprocessor: what the compiler may count on for registers
//     static LAPIDARY_DEVICE void run(const Params& params, unsigned char* shared);
//   };
//
// `shared` is the block's dynamic shared memory, 128-byte aligned (1024 in the emulation), contents undefined. launch.h starts it.
//
// Rules
//   * All 32 lanes of a warp take part in every warp operation, all threads of a block in block_barrier(). A thread that has left the
//     kernel is missed there.
//   * Global memory is accessed through load(), store() and their kin, so that addresses are checked; shared memory may be accessed
//     through plain pointers where load_shared() and store_shared() are clumsy, at the price of that check.
//   * A loop that waits for another block reads with load_volatile(): only there do others get their turn.
//   * Data from another block of the same launch is read with load_volatile(), after an atomic has told that it is there;
//     its writer has called memory_fence() between the data and the atomic.
#pragma once
#include <cstddef>
#include <cstdint>

#include "numbers.h"
#if defined(__CUDACC__)
#include "ptx.h"
#else
#include "emulation.h"
#endif
