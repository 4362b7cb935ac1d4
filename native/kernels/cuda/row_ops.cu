// row_ops.cu: launchers of the small row operations.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/columns.cuh"
#include "kernels/cuda/row_ops/elementwise.cuh"
#include "kernels/cuda/row_ops/means.cuh"
#include "kernels/cuda/row_ops/norms.cuh"

namespace lapidary::cuda {
namespace {

const float* optional(const TensorView& view) { return view.present() ? view.as<const float>() : nullptr; }
int64_t columns(const TensorView& view) { return view.dims[view.rank - 1]; }

// A warp or a block per row, by the length of the rows.
template <template <class> class Norm, class Params>
void launch_rows(LaunchContext& context, const Params& params) {
  if (params.rows == 0 || params.n == 0) return;
  if (params.n <= ShortRows::kKept) {
    launch<Norm<ShortRows>>(context, {divide_up(params.rows, ShortRows::kRowsPerBlock)}, kNormSharedBytes, params);
  } else {
    launch<Norm<LongRows>>(context, {params.rows}, kNormSharedBytes, params);
  }
}

void launch_rms_norm(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[RmsNormInput::x];
  const RmsNormParams& params = call.params_as<RmsNormParams>();
  launch_rows<RmsNorm>(context, RmsNormArguments{.x = rows_of(x),
                                                 .out = rows_of(call.out[0]),
                                                 .weight = optional(call.in[RmsNormInput::weight]),
                                                 .rows = row_count(x),
                                                 .n = columns(x),
                                                 .eps = params.eps,
                                                 .weight_bias = params.weight_bias});
}

void launch_add_rms_norm(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[AddRmsNormInput::x];
  const AddRmsNormParams& params = call.params_as<AddRmsNormParams>();
  launch_rows<AddRmsNorm>(context, AddRmsNormArguments{.x = rows_of(x),
                                                       .residual = rows_of(call.in[AddRmsNormInput::residual]),
                                                       .out = rows_of(call.out[0]),
                                                       .normed = params.next_norm ? rows_of(call.out[1]) : Rows{},
                                                       .post_weight = optional(call.in[AddRmsNormInput::post_weight]),
                                                       .pre_weight = optional(call.in[AddRmsNormInput::pre_weight]),
                                                       .rows = row_count(x),
                                                       .n = columns(x),
                                                       .eps = params.eps,
                                                       .weight_bias = params.weight_bias,
                                                       .out_scale = params.out_scale,
                                                       .post_norm = params.post_norm,
                                                       .next_norm = params.next_norm});
}

void launch_layer_norm(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[LayerNormInput::x];
  launch_rows<LayerNorm>(context, LayerNormArguments{.x = rows_of(x),
                                                     .out = rows_of(call.out[0]),
                                                     .weight = optional(call.in[LayerNormInput::weight]),
                                                     .bias = optional(call.in[LayerNormInput::bias]),
                                                     .rows = row_count(x),
                                                     .n = columns(x),
                                                     .eps = call.params_as<LayerNormParams>().eps});
}

// out = function(a, b). Tensors without gaps, all of out's shape, are one row.
template <class Function>
void launch_elementwise(LaunchContext& context, const TensorView& a, const TensorView& b, const TensorView& out,
                        float cap = 1) {
  const bool gapless = is_contiguous(a) && (!Function::kBinary || (b.rank == a.rank && is_contiguous(b)));
  ElementwiseArguments p = {
      rows_of(a), Function::kBinary ? rows_of(b) : Rows{}, rows_of(out), row_count(out), columns(out), 0, cap};
  if (gapless) {
    p.n *= p.rows;
    p.rows = 1;
    for (Rows* rows : {&p.a, &p.b, &p.out}) rows->aligned = reinterpret_cast<uintptr_t>(rows->data) % 16 == 0;
  }
  p.chunks = divide_up(p.n, kChunk);
  launch<Elementwise<Function>>(context, {divide_up(p.rows * p.chunks, Elementwise<Function>::kThreads)}, 0, p);
}

void launch_gelu(const Call& call, LaunchContext& context) {
  launch_elementwise<Gelu>(context, call.in[0], call.in[0], call.out[0]);
}

void launch_geglu(const Call& call, LaunchContext& context) {
  TensorView gate = call.in[0], up = call.in[1];
  if (!up.present()) {
    // Gate and up side by side: two views of the halves of each row.
    gate.dims[gate.rank - 1] /= 2;
    up = gate;
    up.data += columns(gate) * info(gate.dtype).block_bytes;
  }
  launch_elementwise<Geglu>(context, gate, up, call.out[0]);
}

void launch_add(const Call& call, LaunchContext& context) {
  launch_elementwise<Add>(context, call.in[0], call.in[1], call.out[0]);
}

void launch_softcap(const Call& call, LaunchContext& context) {
  launch_elementwise<Softcap>(context, call.in[0], call.in[0], call.out[0], call.params_as<SoftcapParams>().cap);
}

void launch_cast(const Call& call, LaunchContext& context) {
  launch_elementwise<Cast>(context, call.in[0], call.in[0], call.out[0]);
}

void launch_mean_rows(const Call& call, LaunchContext& context) {
  const TensorView& x = call.in[MeanRowsInput::x];
  const TensorView& out = call.out[0];
  const int64_t blocks = divide_up(out.dims[1], MeanRows::kColumns);
  launch<MeanRows>(context, {out.dims[0] * blocks}, MeanRows::kSharedBytes,
                   {.x = rows_of(x),
                    .starts = call.in[MeanRowsInput::starts].as<const int32_t>(),
                    .out = out.as<float>(),
                    .rows = x.dims[0],
                    .n = out.dims[1],
                    .blocks_per_sequence = blocks,
                    .error = context.error});
}

void launch_gather_columns(const Call& call, LaunchContext& context) {
  const TensorView &x = call.in[0], &out = call.out[0];
  const int64_t elements = element_count(out);
  if (elements == 0) return;
  launch<GatherColumns>(context, {divide_up(elements, GatherColumns::kThreads)}, 0,
                        {.x = rows_of(x),
                         .out = rows_of(out),
                         .order = call.in[1].as<const int32_t>(),
                         .rows = row_count(out),
                         .columns = columns(x),
                         .gathered = columns(out),
                         .error = context.error});
}

}  // namespace

LAPIDARY_CUDA_KERNELS(row_ops, {OpId::rms_norm, launch_rms_norm}, {OpId::add_rms_norm, launch_add_rms_norm},
                      {OpId::layer_norm, launch_layer_norm}, {OpId::gelu, launch_gelu}, {OpId::geglu, launch_geglu},
                      {OpId::add, launch_add}, {OpId::softcap, launch_softcap}, {OpId::cast, launch_cast},
                      {OpId::mean_rows, launch_mean_rows, nullptr, kMeanRowsMessages},
                      {OpId::gather_columns, launch_gather_columns, nullptr, kGatherColumnsMessages})

}  // namespace lapidary::cuda
