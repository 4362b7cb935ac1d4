#include "kernels/cuda/pack_weights.cuh"

namespace lapidary::cuda {
namespace {

template <class K>
void pack(const PackParams& params, LaunchContext& context) {
  const int64_t warps = int64_t(params.panels.panels) * params.panels.records;
  launch<K>(context, {divide_up(warps, K::kThreads / dev::kWarp)}, 0, params);
}

void launch_pack_weights(const Call& call, LaunchContext& context) {
  const TensorView& packed = call.out[0];
  const PackParams params = {describe_source(call), describe_panels(packed), packed.data, context.error};
  if (call.in[3].present()) {
    const ColumnOrderParams order = {params.source.order, packed.dims[1], context.error};
    launch<CheckColumnOrder>(context, {divide_up(order.columns, CheckColumnOrder::kThreads)}, 0, order);
  }
  using C = CodeWidth;
  using S = ScaleScheme;
  switch (packed.dtype) {
    case DType::f32: return pack<PackFloats<uint32_t>>(params, context);
    case DType::f16:
    case DType::bf16: return pack<PackFloats<uint16_t>>(params, context);
    case DType::sfp8: return pack<PackFloats<uint8_t>>(params, context);
    case DType::q4_0: return pack<PackCodes<C::u4, S::pair>>(params, context);
    case DType::q4_1: return pack<PackCodes<C::u4, S::pair_min>>(params, context);
    case DType::q5_0: return pack<PackCodes<C::u5, S::pair>>(params, context);
    case DType::q5_1: return pack<PackCodes<C::u5, S::pair_min>>(params, context);
    case DType::q8_0: return pack<PackCodes<C::u8, S::pair>>(params, context);
    case DType::q4_k: return pack<PackCodes<C::u4, S::super_min>>(params, context);
    case DType::q5_k: return pack<PackCodes<C::u5, S::super_min>>(params, context);
    case DType::q6_k: return pack<PackCodes<C::u6, S::super>>(params, context);
    case DType::iq4_xs: return pack<PackCodes<C::table4, S::super>>(params, context);
    case DType::i8: return pack<PackCodes<C::u8, S::row>>(params, context);
    default: break;  // i4
  }
  switch (params.panels.scheme) {
    case S::pair: return pack<PackCodes<C::u4, S::pair>>(params, context);
    case S::row: return pack<PackCodes<C::u4, S::row>>(params, context);
    default: return pack<PackCodes<C::u4, S::group_zero>>(params, context);
  }
}

void launch_stack_weights(const Call& call, LaunchContext& context) {
  const TensorView& stacked = call.out[0];
  StackParams params = {};
  for (int i = 0; i < 3 && call.in[i].present(); ++i) {
    params.from[i] = call.in[i].data;
    params.panels[i] = panel_count(call.in[i]);
  }
  params.to = stacked.data;
  params.panel_bytes = panel_bytes(stacked);
  params.gate_up = call.params_as<StackWeightsParams>().gate_up;
  launch<StackPanels>(context, {panel_count(stacked)}, 0, params);
}

const char* const kMessages[] = {
    "pack_weights: zeros: expected -8 ... 7, got %lld in row %lld",
    "pack_weights: columnOrder: expected a column below %lld, got %lld",
};
const Code kCodes[] = {Code::kDataCorrupt, Code::kIndexOutOfRange};

}  // namespace

LAPIDARY_CUDA_KERNELS(pack_weights, {OpId::pack_weights, launch_pack_weights, nullptr, kMessages, kCodes},
                      {OpId::stack_weights, launch_stack_weights})

}  // namespace lapidary::cuda
