// ptx.h: the device layer under nvcc. See device.h; each function here is an instruction of the PTX ISA (9.0), and what it needs of
// the architecture is compute capability 8.0.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "numbers.h"

namespace lapidary::dev {

// ── where a thread is ───────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_DEVICE int thread_index() { return int(threadIdx.x); }
LAPIDARY_DEVICE int block_threads() { return int(blockDim.x); }
LAPIDARY_DEVICE int lane() { return int(threadIdx.x) % kWarp; }
LAPIDARY_DEVICE int warp_index() { return int(threadIdx.x) / kWarp; }
LAPIDARY_DEVICE int block_index_x() { return int(blockIdx.x); }
LAPIDARY_DEVICE int block_index_y() { return int(blockIdx.y); }
LAPIDARY_DEVICE int block_index_z() { return int(blockIdx.z); }
LAPIDARY_DEVICE int grid_size_x() { return int(gridDim.x); }
LAPIDARY_DEVICE int grid_size_y() { return int(gridDim.y); }
LAPIDARY_DEVICE int grid_size_z() { return int(gridDim.z); }

// ── barriers and fences ─────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_DEVICE void block_barrier() { __syncthreads(); }
LAPIDARY_DEVICE void warp_barrier() { __syncwarp(); }
// Barrier `id`, 1 to 15, of `threads` threads (whole warps). 0 is block_barrier()'s.
LAPIDARY_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// What this thread wrote before, and what it saw others write, is seen by whoever sees what it writes after.
LAPIDARY_DEVICE void memory_fence() { __threadfence(); }

// ── warps ───────────────────────────────────────────────────────────────────────────────────────────────────────────
template <class T>
LAPIDARY_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
LAPIDARY_DEVICE T shuffle(T value, int from) {
  return __shfl_sync(0xffffffffu, value, from);
}
// Lanes without a lane `delta` above keep their own.
template <class T>
LAPIDARY_DEVICE T shuffle_down(T value, int delta) {
  return __shfl_down_sync(0xffffffffu, value, delta);
}
template <class T>
LAPIDARY_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(0xffffffffu, value, delta);
}
LAPIDARY_DEVICE uint32_t warp_ballot(bool holds) { return __ballot_sync(0xffffffffu, holds); }

// ── matrix units ────────────────────────────────────────────────────────────────────────────────────────────────────
// d += a · b of a warp. Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 / m16n8k32".
LAPIDARY_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
LAPIDARY_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Signed bytes, m16n8k32.
LAPIDARY_DEVICE void mma_i8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

LAPIDARY_DEVICE uint32_t shared_address(const void* shared) { return uint32_t(__cvta_generic_to_shared(shared)); }

// 8 × 8 matrices of 16-bit elements out of shared memory: lanes 8·i … 8·i + 7 give the rows' addresses of matrix i.
LAPIDARY_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
LAPIDARY_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// Two matrices: rows from lanes 0 to 15; the other lanes' addresses are not looked at but must be valid.
LAPIDARY_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
LAPIDARY_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// ── copies from global to shared memory that run beside the thread ──────────────────────────────────────────────────
// An invalid one writes zeros; its global address is not read.
LAPIDARY_DEVICE void copy_async_16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
LAPIDARY_DEVICE void copy_async_8(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 8 : 0)
               : "memory");
}
LAPIDARY_DEVICE void copy_async_4(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}
// Ends a group of copies. Groups of a thread land in order.
LAPIDARY_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kOpen of this thread's groups are still on their way. Others see the data after a barrier.
template <int kOpen>
LAPIDARY_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
// T of 1, 2, 4, 8 or 16 bytes, aligned to its size.
template <class T>
LAPIDARY_DEVICE T load(const T* global) {
  return *global;
}
template <class T>
LAPIDARY_DEVICE void store(T* global, T value) {
  *global = value;
}
template <class T>
LAPIDARY_DEVICE T load_shared(const T* shared) {
  return *shared;
}
template <class T>
LAPIDARY_DEVICE void store_shared(T* shared, T value) {
  *shared = value;
}
// For data that is read once and that nobody writes during the launch: does not displace what the caches hold.
LAPIDARY_DEVICE Words4 load_stream_16(const void* global) {
  Words4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
      : "l"(global));
  return v;
}
LAPIDARY_DEVICE Words2 load_stream_8(const void* global) {
  Words2 v;
  asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(global));
  return v;
}
LAPIDARY_DEVICE uint32_t load_stream_4(const void* global) {
  uint32_t v;
  asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(global));
  return v;
}
// What other blocks write during the launch (from L2, never a stale line of L1). 4, 8 or 16 bytes.
template <class T>
LAPIDARY_DEVICE T load_volatile(const T* global) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(global) : "memory");
    return bit_cast<T>(v);
  } else if constexpr (sizeof(T) == 8) {
    Words2 v;
    asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.word[0]), "=r"(v.word[1]) : "l"(global) : "memory");
    return bit_cast<T>(v);
  } else {
    Words4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(global)
                 : "memory");
    return bit_cast<T>(v);
  }
}

// Each returns what was there before. On global or shared memory; relaxed: order comes from memory_fence() and barriers.
LAPIDARY_DEVICE uint32_t atomic_add(uint32_t* at, uint32_t value) { return ::atomicAdd(at, value); }
LAPIDARY_DEVICE int32_t atomic_add(int32_t* at, int32_t value) { return ::atomicAdd(at, value); }
LAPIDARY_DEVICE float atomic_add(float* at, float value) { return ::atomicAdd(at, value); }
LAPIDARY_DEVICE uint32_t atomic_max(uint32_t* at, uint32_t value) { return ::atomicMax(at, value); }
LAPIDARY_DEVICE int32_t atomic_max(int32_t* at, int32_t value) { return ::atomicMax(at, value); }
LAPIDARY_DEVICE uint64_t atomic_max(uint64_t* at, uint64_t value) {
  return ::atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
LAPIDARY_DEVICE uint32_t atomic_min(uint32_t* at, uint32_t value) { return ::atomicMin(at, value); }
LAPIDARY_DEVICE uint32_t atomic_or(uint32_t* at, uint32_t value) { return ::atomicOr(at, value); }
// Counts up to `last`, then starts at 0 again: whoever gets `last` came last.
LAPIDARY_DEVICE uint32_t atomic_inc(uint32_t* at, uint32_t last) { return ::atomicInc(at, last); }
LAPIDARY_DEVICE uint32_t atomic_exchange(uint32_t* at, uint32_t value) { return ::atomicExch(at, value); }
LAPIDARY_DEVICE uint32_t atomic_compare_exchange(uint32_t* at, uint32_t expected, uint32_t value) {
  return ::atomicCAS(at, expected, value);
}

// ── arithmetic ──────────────────────────────────────────────────────────────────────────────────────────────────────
LAPIDARY_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LAPIDARY_DEVICE float div(float a, float b) { return __fdiv_rn(a, b); }
LAPIDARY_DEVICE float sqrt(float x) { return __fsqrt_rn(x); }
LAPIDARY_DEVICE float max(float a, float b) { return fmaxf(a, b); }
LAPIDARY_DEVICE float min(float a, float b) { return fminf(a, b); }
LAPIDARY_DEVICE float abs(float x) { return fabsf(x); }
LAPIDARY_DEVICE float round_even(float x) { return rintf(x); }
LAPIDARY_DEVICE int round_to_int(float x) { return __float2int_rn(x); }
// 2^x within 2^-22 relative; results below 2^-126 are 0.
LAPIDARY_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// log2 within 2^-22 of 1, absolute near 1 (PTX ISA, lg2.approx).
LAPIDARY_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Within 2^-11 relative (PTX ISA, tanh.approx.f32: 2^-10.987).
LAPIDARY_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Within 1 ulp; 2^-22.9.
LAPIDARY_DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LAPIDARY_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

LAPIDARY_DEVICE Bf16 to_bf16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
LAPIDARY_DEVICE F16 to_f16(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
LAPIDARY_DEVICE float to_float(F16 x) { return __half2float(__ushort_as_half(x.bits)); }
// Two at a time; the first is the lower half.
LAPIDARY_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
LAPIDARY_DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
LAPIDARY_DEVICE float low_f16(uint32_t pair) { return to_float(F16{uint16_t(pair)}); }
LAPIDARY_DEVICE float high_f16(uint32_t pair) { return to_float(F16{uint16_t(pair >> 16)}); }
// Pairs of 16-bit floats, each rounded once.
LAPIDARY_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
LAPIDARY_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// sum + four products of signed bytes.
LAPIDARY_DEVICE int32_t dot4_i8(uint32_t a, uint32_t b, int32_t sum) { return __dp4a(int32_t(a), int32_t(b), sum); }
// Any bitwise function of three words: bit i of kTable is its value where the bits of a, b, c spell i (a is worth 4).
template <int kTable>
LAPIDARY_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}
// Bytes of {b, a} (b the upper word) by the four digits of `selector`, least first.
LAPIDARY_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
// x, as a value that the compiler cannot see through: what is computed from it inside a loop is computed there, and not kept in registers
// across the loop.
LAPIDARY_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
LAPIDARY_DEVICE int count_ones(uint32_t x) { return __popc(x); }
LAPIDARY_DEVICE int leading_zeros(uint32_t x) { return __clz(int(x)); }
LAPIDARY_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

}  // namespace lapidary::dev
