// matmul: y [M, N] = x [M, K] · W [N, K]ᵀ. The contract, with what each weight format computes, is in ops/matmul.h.
//
//   packed W, M ≤ 8, and f32 W    matmul/decode.cuh, eight rows at a time
//   packed W otherwise            matmul/tensor_core.cuh; x is rounded to bf16 first where it is not already fit to be copied
//   row-major W                   matmul/row_major.cuh
#include <algorithm>

#include "kernels/cuda/matmul/decode.cuh"
#include "kernels/cuda/matmul/row_major.cuh"
#include "kernels/cuda/matmul/tensor_core.cuh"

namespace lapidary::cuda {
namespace {

using namespace matmul;

bool uses_tensor_cores(const TensorView& x, const TensorView& w) {
  return row_count(x) > kDecodeRows && w.dtype != DType::f32;
}

// Whether tiles of x can be copied as they are.
bool copies_rows(const Rows& x) { return x.bf16 && x.aligned && x.columns % 8 == 0; }

int64_t padded_columns(const Rows& x) { return (x.columns + 7) / 8 * 8; }
int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }
int64_t rounded_bytes(const Rows& x) { return aligned(x.rows * padded_columns(x) * 2); }

int splits_of(const TensorView& x, const TensorView& w) {
  const Panels panels = describe_panels(w);
  if (uses_tensor_cores(x, w)) return plan_tensor_splits(panels, row_count(x));
  return plan_decode(panels).splits;
}

// Rounded rows, then partial sums. Where x need not be rounded the room is there all the same: this may be asked before memory is.
size_t matmul_workspace(const Call& call, const Properties&) {
  const TensorView &x = call.in[0], &w = call.in[1];
  if (w.layout != Layout::panels) return 0;
  const Rows rows = describe_rows(x);
  const int splits = splits_of(x, w);
  const int64_t together = std::min(rows.rows, kRowsAtOnce);
  const int64_t partial = splits > 1 ? splits * together * ((panel_count(w) + 1) / 2) * 32 * 4 : 0;
  return size_t((uses_tensor_cores(x, w) ? rounded_bytes(rows) : 0) + partial);
}

template <class Format, int kRows>
void decode(DecodeParams params, LaunchContext& context) {
  using K = Decode<Format, kRows>;
  const int64_t blocks = divide_up(params.pairs, kDecodeWarps / params.parts);
  for (; params.first_row < params.x.rows; params.first_row += kRowsAtOnce) {
    const int64_t rows = std::min(params.x.rows - params.first_row, kRowsAtOnce);
    launch<K>(context, {blocks, params.splits.count, divide_up(rows, kRows)}, K::shared_bytes(params), params);
  }
}

template <class Format>
void decode(const Call& call, LaunchContext& context) {
  DecodeParams params = {};
  params.w = describe_panels(call.in[1]);
  params.x = describe_rows(call.in[0]);
  params.out = describe_output(call);
  const DecodePlan plan = plan_decode(params.w);
  params.parts = plan.parts;
  params.chunk_records = plan.chunk_records;
  params.pairs = plan.pairs;
  params.splits = {plan.splits, reinterpret_cast<float*>(context.workspace), context.counters};
  const int64_t rows = params.x.rows;
  if (rows <= 1) return decode<Format, 1>(params, context);
  if (rows <= 2) return decode<Format, 2>(params, context);
  if (rows <= 4) return decode<Format, 4>(params, context);
  decode<Format, kDecodeRows>(params, context);
}

template <class Format, int kTiles>
void tensor_core(const TensorParams& params, LaunchContext& context) {
  using K = TensorCore<Format, kTiles>;
  const Grid grid = {divide_up(params.pairs, kTensorWarps), divide_up(params.rows, kTiles * 8), params.splits.count};
  launch<K>(context, grid, K::kSharedBytes, params);
}

template <class Format>
void tensor_core(const Call& call, LaunchContext& context) {
  const Rows x = describe_rows(call.in[0]);
  TensorParams params = {};
  params.w = describe_panels(call.in[1]);
  params.x = x.data;
  params.x_stride = x.stride;
  params.rows = x.rows;
  params.columns = padded_columns(x);
  params.out = describe_output(call);
  params.pairs = (params.w.panels + 1) / 2;
  params.splits = {plan_tensor_splits(params.w, x.rows), reinterpret_cast<float*>(context.workspace + rounded_bytes(x)),
                   context.counters};
  if (!copies_rows(x)) {
    params.x = context.workspace;
    params.x_stride = params.columns;
    const RoundRowsParams round = {x, context.workspace, params.columns};
    launch<RoundRows>(context, {divide_up(x.rows * params.columns / 8, RoundRows::kThreads)}, 0, round);
  }
  if (x.rows <= 16) return tensor_core<Format, 2>(params, context);
  if (x.rows <= 32) return tensor_core<Format, 4>(params, context);
  tensor_core<Format, 8>(params, context);
}

void launch_row_major(const Call& call, LaunchContext& context) {
  const TensorView& w = call.in[1];
  RowMajorParams params = {};
  params.weight = w.data;
  params.weight_stride = w.strides[0] * info(w.dtype).block_bytes;
  params.outputs = w.dims[0];
  params.dtype = w.dtype;
  params.x = describe_rows(call.in[0]);
  params.out = describe_output(call);
  const Grid grid = {divide_up(params.outputs, RowMajor::kThreads / dev::kWarp),
                     divide_up(params.x.rows, RowMajor::kRows)};
  launch<RowMajor>(context, grid, 0, params);
}

void launch_matmul(const Call& call, LaunchContext& context) {
  const TensorView &x = call.in[0], &w = call.in[1];
  if (row_count(x) == 0) return;
  if (w.layout != Layout::panels) return launch_row_major(call, context);
  with_format(w, [&](auto format) {
    using Format = decltype(format);
    if constexpr (!std::is_same_v<Format, Floats<DType::f32>>) {
      if (uses_tensor_cores(x, w)) return tensor_core<Format>(call, context);
    }
    decode<Format>(call, context);
  });
}

}  // namespace

LAPIDARY_CUDA_KERNELS(matmul, {OpId::matmul, launch_matmul, matmul_workspace})

}  // namespace lapidary::cuda
