#include "kernels/cuda/refine_logits.cuh"

namespace lapidary::cuda {
namespace {

int64_t most_refined(const Call& call) {
  const int64_t top = call.params_as<RefineLogitsParams>().top, vocabulary = call.in[RefineLogitsInput::logits].dims[1];
  return top < vocabulary ? top : vocabulary;
}

size_t refine_workspace(const Call& call, const Properties&) {
  const TensorView& logits = call.in[RefineLogitsInput::logits];
  return size_t(logits.dims[0] * (logits.dims[1] + 1)) * sizeof(int32_t);
}

void launch_refine_logits(const Call& call, LaunchContext& context) {
  const TensorView &logits = call.in[RefineLogitsInput::logits], &hidden = call.in[RefineLogitsInput::hidden];
  const TensorView& table = call.in[RefineLogitsInput::table];
  RefineArguments p = {};
  p.logits = logits.as<float>();
  p.logits_stride = logits.strides[0];
  p.rows = logits.dims[0];
  p.vocabulary = logits.dims[1];
  p.top = call.params_as<RefineLogitsParams>().top;
  p.hidden = hidden.data;
  p.hidden_stride = hidden.strides[0];
  p.hidden_bf16 = hidden.dtype == DType::bf16;
  p.table = describe_matrix(table);
  p.columns = table.dims[1];
  p.counts = reinterpret_cast<int32_t*>(context.workspace);
  p.ids = p.counts + p.rows;
  launch<FindTop>(context, {p.rows}, sizeof(FindTop::Shared), p);
  launch<ExactLogits>(context, {divide_up(most_refined(call), ExactLogits::kThreads / dev::kWarp), p.rows}, 0, p);
}

}  // namespace

LAPIDARY_CUDA_KERNELS(refine_logits, {OpId::refine_logits, launch_refine_logits, refine_workspace})

}  // namespace lapidary::cuda
