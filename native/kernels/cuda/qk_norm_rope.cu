// qk_norm_rope.cu: the launcher of qk_norm_rope.
#include "kernels/cuda/qk_norm_rope.cuh"

#include "ops/qk_norm_rope.h"

namespace lapidary::cuda {
namespace {

using In = QkNormRopeInput;

const char* const kQkNormRopeMessages[] = {
    "qk_norm_rope: positions: expected at least 0, got %lld at token %lld",
    "qk_norm_rope: slots: expected -1 or a slot of the cache, got %lld at token %lld",
};

// [tokens, heads, headDim] or [pages, heads, pageTokens, headDim]
HeadRows head_rows(const TensorView& view) {
  HeadRows rows = {view.data, view.strides[0], view.strides[1], view.rank == 4 ? view.strides[2] : 0, view.dtype,
                   false};
  const int64_t head_dim = view.dims[view.rank - 1], bytes = info(view.dtype).block_bytes, unit = 4 * bytes;
  // Halves of a row begin at groups of four, too.
  rows.aligned = head_dim % 8 == 0 && reinterpret_cast<uintptr_t>(view.data) % uintptr_t(unit) == 0;
  for (int axis = 0; axis + 1 < view.rank; ++axis)
    rows.aligned = rows.aligned && (view.dims[axis] <= 1 || view.strides[axis] % 4 == 0);
  return rows;
}

HeadJob head_job(const TensorView& from, const TensorView& to, const TensorView* weight, int pairs) {
  HeadJob job = {};
  job.from = head_rows(from);
  job.to = head_rows(to);
  job.pairs = pairs;
  if (weight && weight->present()) {
    job.norm = true;
    job.weight = weight->data;
    job.weight_dtype = weight->dtype;
    job.weight_aligned =
        weight->dims[0] % 8 == 0 &&
        reinterpret_cast<uintptr_t>(weight->data) % uintptr_t(4 * info(weight->dtype).block_bytes) == 0;
  }
  return job;
}

void set_scales(HeadJob& job, const TensorView& scales) {
  if (!scales.present()) return;
  job.scales = scales.as<float>();
  job.scale_page = scales.strides[0];
  job.scale_head = scales.strides[1];
  job.scale_slot = scales.strides[2];
}

void launch_qk_norm_rope(const Call& call, LaunchContext& context) {
  const QkNormRopeParams& params = call.params_as<QkNormRopeParams>();
  const TensorView &q = call.in[In::q], &k = call.in[In::k], &v = call.in[In::v], &cache = call.in[In::k_cache];
  QkNormRopeArguments p = {};
  p.cached = cache.present();
  p.tokens = q.dims[0];
  p.query_heads = int(q.dims[1]);
  p.kv_heads = k.present() ? int(k.dims[1]) : 0;
  p.head_dim = int(q.dims[2]);
  p.job[0] = head_job(q, call.out[0], &call.in[In::q_norm], params.rotated_pairs);
  if (k.present()) {
    p.job[1] = head_job(k, p.cached ? cache : call.out[1], &call.in[In::k_norm], params.rotated_pairs);
    p.job[2] = head_job(v, p.cached ? call.in[In::v_cache] : call.out[2], nullptr, 0);
    p.job[2].norm = params.value_norm;
    set_scales(p.job[1], call.in[In::k_scales]);
    set_scales(p.job[2], call.in[In::v_scales]);
  }
  p.positions = call.in[In::positions].as<const int32_t>();
  p.slots = call.in[In::slots].as<const int32_t>();
  p.pages = p.cached ? cache.dims[0] : 0;
  p.page_tokens = p.cached ? int(cache.dims[2]) : 0;
  p.rotated_pairs = params.rotated_pairs;
  p.frequency_step = params.frequency_step;
  p.frequency_stride = params.frequency_stride;
  p.position_scale = params.position_scale;
  p.eps = params.eps;
  p.weight_bias = params.weight_bias;
  p.errors = context.error;
  constexpr int64_t kMostBlocks = int64_t(1) << 24;
  const int64_t items = p.tokens * QkNormRope::row_groups(p);
  launch<QkNormRope>(context, {items < kMostBlocks ? items : kMostBlocks}, QkNormRope::shared_bytes(p), p);
}

}  // namespace

LAPIDARY_CUDA_KERNELS(qk_norm_rope, {OpId::qk_norm_rope, launch_qk_norm_rope, nullptr, kQkNormRopeMessages})
}  // namespace lapidary::cuda
