// flash_attention for processors where vdpbf16ps runs at full rate. bf16 and i8 keys and values are multiplied in bf16,
// with q and the softmax weights rounded to it; f32 and f16 ones as everywhere (flash_attention.inl.h has the contract
// and the parts).
//
//   tile      8 keys (or elements of head_dim) × 48 rows of f32 sums; a step multiplies pairs: flash_attention/prefill.h
//   operands  pairs along head_dim in K and Q, pairs of keys in V and the weights: flash_attention/bf16_products.h
#include "kernels/cpu/flash_attention/bf16_decode.h"
#include "kernels/cpu/flash_attention/run.h"

namespace lapidary {
namespace {

static void flash_attention(const Call& call, Team& team) {
  const DType dtype = call.in[FlashAttentionInput::k].dtype;
  if (dtype == DType::bf16 || dtype == DType::i8) {
    attention::run<attention::Bf16Products, attention::Bf16Decode>(call, team);
  } else {
    attention::run<attention::F32Products, attention::F32Decode>(call, team);
  }
}

static const Kernel kKernels[] = {{OpId::flash_attention, flash_attention, attention::scratch_bytes}};

}  // namespace
}  // namespace lapidary
