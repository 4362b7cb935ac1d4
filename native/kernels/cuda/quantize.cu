#include "kernels/cuda/quantize.cuh"

namespace lapidary::cuda {
namespace {

template <class K>
void quantize_blocks(const QuantizeArguments& params, int block, LaunchContext& context) {
  launch<K>(context, {divide_up(params.rows * (params.columns / block), K::kThreads / dev::kWarp)}, 0, params);
}

void launch_quantize(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[0];
  const auto& params = call.params_as<QuantizeParams>();
  QuantizeArguments p = {};
  p.x = x.data;
  p.row_bytes = x.strides[0] * info(x.dtype).block_bytes;
  p.rows = x.dims[0];
  p.columns = x.dims[1];
  p.dtype = x.dtype;
  p.out = call.out[0].data;
  if (params.format == QuantizeFormat::q4_0) return quantize_blocks<QuantizeQ4>(p, 32, context);
  if (params.format == QuantizeFormat::q8_0) return quantize_blocks<QuantizeQ8>(p, 32, context);
  p.scales = call.out[1].data;
  p.scale_dtype = call.out[1].dtype;
  if (params.group == 32) return quantize_blocks<QuantizeI4<1>>(p, 32, context);
  if (params.group == 64) return quantize_blocks<QuantizeI4<2>>(p, 64, context);
  quantize_blocks<QuantizeI4<4>>(p, 128, context);
}

void launch_dequantize(const Call& call, LaunchContext& context) {
  const TensorView& w = call.in[0];
  DequantizeArguments p = {};
  p.w = describe_matrix(w);
  p.rows = w.dims[0];
  p.columns = w.dims[1];
  p.scale = call.params_as<DequantizeParams>().scale;
  p.bf16 = call.out[0].dtype == DType::bf16;
  p.out = call.out[0].data;
  launch<Dequantize>(context, {p.rows * divide_up(p.columns, Dequantize::kThreads)}, 0, p);
}

}  // namespace

LAPIDARY_CUDA_KERNELS(quantize, {OpId::quantize, launch_quantize}, {OpId::dequantize, launch_dequantize})

}  // namespace lapidary::cuda
