// matmul on AMX: y [M, N] = x [M, K] · W [N, K]ᵀ, many rows at a time.
//
// Algorithm: by the number of rows M of x
//   M ≤ 8        the AVX-512 kernel (matmul.inl.h): memory-bound, tiles would not help
//   M = 9 … 48   integer formats: byte tiles, exact per group of 32 columns (matmul_amx/int8_groups.h)
//   otherwise    x and W rounded to bf16, products in bf16 tiles (matmul_amx/bf16_blocks.h)
// f32 weights always take the AVX-512 kernel: rounding them to bf16 would lose half their digits.
//
// Contract: ops/matmul.h; shapes, dtypes, bias and the GeGLU epilogue are the same on every path. What is computed:
//
//   int8 path    bit for bit what the AVX-512 path computes: x in 8 bits per group of 32, sums exact within it
//   bf16 path    y = Σ_k bf16(x) · bf16(w)
//
// bf16() rounds to nearest even; w is the weight's value computed in f32 with at most two roundings
// (matmul_amx/bf16_panels.h); products are exact. Columns are added 32 at a time from k = 0: those with even k and
// those with odd k in two chains, the chains together, that to the sum so far. A product passes through at most 17 + ⌈K
// / 32⌉ roundings of 2⁻²⁴. Values and sums below 2⁻¹²⁶ count as 0. Before bias and epilogue:
//
//   |y − Σ x·w| ≤ Σ |x·w| · ((1 + 2⁻⁸)² · (1 + 2⁻²⁴)² · (1 + γ) − 1) + 2⁻¹²⁶ · Σ (|x| + |w| + 2)
//   γ = n·2⁻²⁴ / (1 − n·2⁻²⁴),  n = 17 + ⌈K / 32⌉
//
// A NaN or infinity in a row of x makes that row's outputs NaN or infinite, and no others.
//
// Bytes (bf16 path): W once per band of 512 rows, x twice, y once. FLOPs: 2·M·N·K. A core multiplies 512 bf16 pairs per
// cycle.
#include "kernels/cpu/kernel.h"
// The AVX-512 kernel without its table.
#define kKernels kVectorKernels
#include "kernels/cpu/matmul.inl.h"
#undef kKernels
#include "kernels/cpu/matmul_amx/bf16_blocks.h"
#include "kernels/cpu/matmul_amx/int8_groups.h"

namespace lapidary {
namespace {
namespace matmul_amx {

enum class Path { vector, int8, bf16 };

LAPIDARY_INLINE Path choose_path(const Call& call) {
  const int64_t rows = row_count(call.in[0]);
  const TensorView& w = call.in[1];
  if (w.layout != Layout::panels || w.dtype == DType::f32 || rows <= kDecodeRows || w.dims[0] == 0) return Path::vector;
  return panel_format(w).codes != CodeWidth::none && rows <= kMostInt8Rows ? Path::int8 : Path::bf16;
}

template <class Format>
static void matmul_codes(const Call& call, Team& team, Path path) {
  if (path == Path::int8) return matmul_int8<Format>(call, team);
  matmul_bf16(call, team, panel_shape(call.in[1]), advance<IntegerCodec<Format>>);
}

static void matmul(const Call& call, Team& team) {
  const TensorView& w = call.in[1];
  const Path path = choose_path(call);
  if (path == Path::vector) return matmul_cpu::matmul(call, team);
  switch (w.dtype) {
    case DType::bf16: return matmul_bf16(call, team, {}, advance<Bf16Codec>);
    case DType::f16: return matmul_bf16(call, team, {}, advance<F16Codec>);
    case DType::sfp8: return matmul_bf16(call, team, {}, advance<Sfp8Codec>);
    default: break;
  }
  with_format(w, [&](auto format) { matmul_codes<decltype(format)>(call, team, path); });
}

static size_t matmul_scratch(const Call& call, int threads) {
  switch (choose_path(call)) {
    case Path::int8: {
      size_t bytes = 0;
      with_format(call.in[1], [&](auto format) {
        bytes = size_t(plan_int8<decltype(format)>(row_count(call.in[0]), call.in[1]).bytes());
      });
      return bytes;
    }
    case Path::bf16: return bf16_scratch(call, threads);
    default: return matmul_cpu::matmul_scratch(call, threads);
  }
}

static void matmul_prefetch(const Call& call, const Team& team) {
  if (choose_path(call) == Path::vector) matmul_cpu::matmul_prefetch(call, team);
}

}  // namespace matmul_amx

static const Kernel kKernels[] = {
    {OpId::matmul, matmul_amx::matmul, matmul_amx::matmul_scratch, matmul_amx::matmul_prefetch}};

}  // namespace
}  // namespace lapidary
