// row_ops.cu: launchers of the small row operations.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/norms.cuh"

namespace lapidary::cuda {
namespace {

const float* optional(const TensorView& view) { return view.present() ? view.as<const float>() : nullptr; }

template <template <class> class Norm, class Params>
void launch_rows(LaunchContext& context, const Params& params) {
  if (params.rows == 0 || params.n == 0) return;
  if (params.n <= ShortRows::kColumns) {
    launch<Norm<ShortRows>>(context, {divide_up(params.rows, ShortRows::kRowsPerBlock)}, kNormSharedBytes, params);
  } else {
    launch<Norm<LongRows>>(context, {params.rows}, kNormSharedBytes, params);
  }
}

void launch_rms_norm(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[RmsNormInput::x];
  const RmsNormParams& params = call.params_as<RmsNormParams>();
  RmsNormArguments p;
  p.x = rows_of(x);
  p.out = rows_of(call.out[0]);
  p.weight = optional(call.in[RmsNormInput::weight]);
  p.rows = row_count(x);
  p.n = x.dims[x.rank - 1];
  p.eps = params.eps;
  p.weight_bias = params.weight_bias;
  launch_rows<RmsNorm>(context, p);
}

}  // namespace
}  // namespace lapidary::cuda

namespace lapidary::cuda {
LAPIDARY_CUDA_KERNELS(row_ops, {OpId::rms_norm, launch_rms_norm})
}
