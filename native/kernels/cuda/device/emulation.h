// emulation.h: the device layer on the host. See device.h for what the functions mean (ptx.h says it per function) and
// emulation/scheduler.h for how threads run. Approximate instructions are as wrong as the PTX ISA allows them to be, always in
// the same way for the same argument, so that a tolerance that overlooks them fails here.
#pragma once
#include <cmath>

#include "emulation/scheduler.h"
#include "numbers.h"

namespace lapidary::dev {

// ── where a thread is ───────────────────────────────────────────────────────────────────────────────────────────────
namespace detail {
inline const emulation::Block& block() { return *emulation::current->warp->block; }
emulation::Dimensions grid();  // emulation/operations.cc
}  // namespace detail

inline int thread_index() { return emulation::current->index; }
inline int block_threads() { return detail::block().threads; }
inline int lane() { return emulation::current->lane; }
inline int warp_index() { return emulation::current->index / kWarp; }
inline int block_index_x() { return detail::block().x; }
inline int block_index_y() { return detail::block().y; }
inline int block_index_z() { return detail::block().z; }
inline int grid_size_x() { return detail::grid().x; }
inline int grid_size_y() { return detail::grid().y; }
inline int grid_size_z() { return detail::grid().z; }

// ── barriers and fences ─────────────────────────────────────────────────────────────────────────────────────────────
inline void block_barrier() { emulation::barrier(0, detail::block().threads); }
inline void warp_barrier() { emulation::collective(emulation::Operation::barrier, 0, nullptr, nullptr, nullptr); }
inline void named_barrier(int id, int threads) {
  if (id < 1) emulation::fail("named_barrier(%d): expected 1 to 15; 0 is block_barrier's", id);
  emulation::barrier(id, threads);
}
inline void memory_fence() { emulation::fence(); }

// ── warps ───────────────────────────────────────────────────────────────────────────────────────────────────────────
namespace detail {

template <class T>
struct Shuffled {
  T value;
  int from;  // lane
};

template <class T>
T shuffle_from(T value, int from) {
  Shuffled<T> in{value, from};
  T out;
  emulation::collective(emulation::Operation::shuffle, int(sizeof(T)), &in, &out,
                        [](const void* const* in, void* const* out, int) {
                          for (int i = 0; i < kWarp; ++i) {
                            const int from = static_cast<const Shuffled<T>*>(in[i])->from;
                            *static_cast<T*>(out[i]) = static_cast<const Shuffled<T>*>(in[from])->value;
                          }
                        });
  return out;
}

}  // namespace detail

template <class T>
inline T shuffle_xor(T value, int mask) {
  return detail::shuffle_from(value, (lane() ^ mask) % kWarp);
}
template <class T>
inline T shuffle(T value, int from) {
  return detail::shuffle_from(value, from & (kWarp - 1));
}
template <class T>
inline T shuffle_down(T value, int delta) {
  return detail::shuffle_from(value, lane() + delta < kWarp ? lane() + delta : lane());
}
template <class T>
inline T shuffle_up(T value, int delta) {
  return detail::shuffle_from(value, lane() - delta >= 0 ? lane() - delta : lane());
}
uint32_t warp_ballot(bool holds);

// ── matrix units ────────────────────────────────────────────────────────────────────────────────────────────────────
void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void mma_i8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void ldmatrix_x4(uint32_t (&r)[4], const void* row);
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row);
void ldmatrix_x2(uint32_t (&r)[2], const void* row);
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row);

// ── copies from global to shared memory that run beside the thread ──────────────────────────────────────────────────
inline void copy_async_16(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 16, valid);
}
inline void copy_async_8(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 8, valid);
}
inline void copy_async_4(void* shared, const void* global, bool valid = true) {
  emulation::copy_async(shared, global, 4, valid);
}
inline void copy_async_commit() { emulation::copy_commit(); }
template <int kOpen>
inline void copy_async_wait() {
  emulation::copy_wait(kOpen);
}

// ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
template <class T>
inline T load(const T* global) {
  emulation::check_global(global, sizeof(T), false);
  T value;
  emulation::read_global(global, &value, sizeof(T));
  return value;
}
template <class T>
inline void store(T* global, T value) {
  static_assert(sizeof(T) <= 16);
  emulation::check_global(global, sizeof(T), true);
  emulation::write_global(global, &value, sizeof(T));
}
// Always inlined: the emulation tells instructions apart by the place in the kernel that it returns to.
template <class T>
__attribute__((always_inline)) inline T load_shared(const T* shared) {
  emulation::access_shared(shared, sizeof(T));
  return *shared;
}
template <class T>
__attribute__((always_inline)) inline void store_shared(T* shared, T value) {
  emulation::access_shared(shared, sizeof(T));
  *shared = value;
}
inline Words4 load_stream_16(const void* global) { return load(static_cast<const Words4*>(global)); }
inline Words2 load_stream_8(const void* global) { return load(static_cast<const Words2*>(global)); }
inline uint32_t load_stream_4(const void* global) { return load(static_cast<const uint32_t*>(global)); }
template <class T>
inline T load_volatile(const T* global) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  emulation::offer_turn();
  return load(global);
}

namespace detail {
template <class T, class Change>
inline T atomic(T* at, Change change) {
  emulation::prepare_atomic(at, sizeof(T));
  const T before = *at;
  *at = change(before);
  return before;
}
}  // namespace detail

inline uint32_t atomic_add(uint32_t* at, uint32_t value) {
  return detail::atomic(at, [=](uint32_t old) { return old + value; });
}
inline int32_t atomic_add(int32_t* at, int32_t value) {
  return detail::atomic(at, [=](int32_t old) { return int32_t(uint32_t(old) + uint32_t(value)); });
}
inline float atomic_add(float* at, float value) {
  return detail::atomic(at, [=](float old) { return old + value; });
}
inline uint32_t atomic_max(uint32_t* at, uint32_t value) {
  return detail::atomic(at, [=](uint32_t old) { return old > value ? old : value; });
}
inline int32_t atomic_max(int32_t* at, int32_t value) {
  return detail::atomic(at, [=](int32_t old) { return old > value ? old : value; });
}
inline uint64_t atomic_max(uint64_t* at, uint64_t value) {
  return detail::atomic(at, [=](uint64_t old) { return old > value ? old : value; });
}
inline uint32_t atomic_min(uint32_t* at, uint32_t value) {
  return detail::atomic(at, [=](uint32_t old) { return old < value ? old : value; });
}
inline uint32_t atomic_or(uint32_t* at, uint32_t value) {
  return detail::atomic(at, [=](uint32_t old) { return old | value; });
}
inline uint32_t atomic_inc(uint32_t* at, uint32_t last) {
  return detail::atomic(at, [=](uint32_t old) { return old >= last ? 0u : old + 1; });
}
inline uint32_t atomic_exchange(uint32_t* at, uint32_t value) {
  return detail::atomic(at, [=](uint32_t) { return value; });
}
inline uint32_t atomic_compare_exchange(uint32_t* at, uint32_t expected, uint32_t value) {
  return detail::atomic(at, [=](uint32_t old) { return old == expected ? value : old; });
}

// ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────────────
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float div(float a, float b) { return a / b; }
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
inline float min(float a, float b) { return __builtin_fminf(a, b); }
inline float abs(float x) { return __builtin_fabsf(x); }
inline float round_even(float x) { return __builtin_rintf(x); }
// Out of range saturates, NaN is 0, as the instruction has it.
inline int round_to_int(float x) {
  if (x != x) return 0;
  if (x >= 0x1p31f) return INT32_MAX;
  if (x < -0x1p31f) return INT32_MIN;
  return int(__builtin_rintf(x));
}
float exp2_approx(float x);
float log2_approx(float x);
float tanh_approx(float x);
float rcp_approx(float x);
float rsqrt_approx(float x);

inline Bf16 to_bf16(float x) {
  uint32_t bits = bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  bits += 0x7fffu + (bits >> 16 & 1);
  return {uint16_t(bits >> 16)};
}
F16 to_f16(float x);
float to_float(F16 x);
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low).bits | uint32_t(to_bf16(high).bits) << 16; }
inline uint32_t pack_f16(float low, float high) { return to_f16(low).bits | uint32_t(to_f16(high).bits) << 16; }
inline float low_f16(uint32_t pair) { return to_float(F16{uint16_t(pair)}); }
inline float high_f16(uint32_t pair) { return to_float(F16{uint16_t(pair >> 16)}); }
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c);

inline int32_t dot4_i8(uint32_t a, uint32_t b, int32_t sum) {
  for (int i = 0; i < 4; ++i) sum += int32_t(int8_t(a >> 8 * i)) * int32_t(int8_t(b >> 8 * i));
  return sum;
}
template <int kTable>
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i) {
    if (kTable >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return d;
}
inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 15;
    uint32_t byte = uint32_t(bytes >> 8 * (digit & 7)) & 0xff;
    if (digit & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, replicated
    d |= byte << 8 * i;
  }
  return d;
}
inline int opaque(int x) { return x; }
inline int count_ones(uint32_t x) { return __builtin_popcount(x); }
inline int leading_zeros(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

}  // namespace lapidary::dev
