// matmul for processors where vdpbf16ps runs at full rate: bf16 weights times bf16 x, two columns at a time. Everything else
// is the AVX-512 kernel's.
//
// Panels of bf16 already hold their columns in pairs (ops/weight_panels.h), and so does a row of x. Products are exact, as in
// f32, and a row's result does not depend on the others: the contract (ops/matmul.h) is that of float formats, but that the
// columns 2i and 2i + 1 enter a chain together, that with the odd one first, and numbers below 2⁻¹²⁶ count as 0.
//
// Twice the multiplications per instruction of an fma, and x takes half the room. The tile is that of float_panels.h: 2
// chains × 2 panels × 6 rows.
#include "kernels/cpu/kernel.h"
// The generic kernel's parts without its table.
#define kKernels kVectorKernels
#include "kernels/cpu/matmul.inl.h"
#undef kKernels

namespace lapidary {
namespace {
namespace matmul_avx512_bf16 {

using namespace matmul_cpu;

struct Bf16Pairs {
  static constexpr DType kDtype = DType::bf16;
  static constexpr int kBytes = 2;
  static constexpr int64_t kHeadBytes = 0;
  static constexpr int kChains = 2;
  static constexpr int kTileRows = 6;
  static constexpr int kDecodePanels = 1;
  static constexpr int kPerStep = 2;
  static constexpr bool kInL1 = false;
  using Vector = Bytes;

  LAPIDARY_INLINE F32 steps_of(const TensorView& x, int64_t offset, int64_t column, int64_t columns) {
    const int64_t present = columns - column;
    const __mmask32 first = present >= 32 ? 0xffffffffu : present > 0 ? (1u << present) - 1 : 0;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, x.as<uint16_t>() + offset + column));
  }
  LAPIDARY_INLINE Bytes broadcast(const float* step) { return broadcast4(step); }
  LAPIDARY_INLINE F32 multiply_add(F32 sum, Bytes x, Bytes w) { return dot_bf16(sum, x, w); }
  LAPIDARY_INLINE void load4(const unsigned char* weights, int64_t k, Bytes (&w)[2]) {
    for (int pair = 0; pair < 2; ++pair) w[pair] = load_bytes(weights + k * R * kBytes + pair * kLine);
  }
};

LAPIDARY_INLINE bool takes_pairs(const Call& call) {
  return call.in[1].layout == Layout::panels && call.in[1].dtype == DType::bf16 && call.in[0].dtype == DType::bf16 &&
         row_count(call.in[0]) > 0;
}

static void matmul(const Call& call, Team& team) {
  takes_pairs(call) ? matmul_float<Bf16Pairs>(call, team) : matmul_cpu::matmul(call, team);
}

static size_t matmul_scratch(const Call& call, int threads) {
  return takes_pairs(call) ? float_scratch<Bf16Pairs>(call, threads) : matmul_cpu::matmul_scratch(call, threads);
}

}  // namespace matmul_avx512_bf16

static const Kernel kKernels[] = {
    {OpId::matmul, matmul_avx512_bf16::matmul, matmul_avx512_bf16::matmul_scratch, matmul_cpu::matmul_prefetch}};

}  // namespace
}  // namespace lapidary
