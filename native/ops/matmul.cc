#include "ops/matmul.h"

#include "ops/contract.h"
#include "ops/weight_panels.h"

namespace lapidary {
namespace {

constexpr InputSpec kInputs[] = {{"x"}, {"weight"}, {"bias", true}, {"residual", true}};
enum Input { kX, kWeight, kBias, kResidual };
constexpr AttributeSpec kAttributes[] = {
    {"epilogue", AttributeKind::choice, 0, "none|geglu|gelu"},
    {"outputDtype", AttributeKind::choice, 0, "f32|bf16"},
};
constexpr const char* kOutputs[] = {"out"};

// Integer accumulators: 32 products of at most 255 · 127 each fit easily; K bounds only the scratch of the rounded x.
constexpr int64_t kMaxColumns = int64_t(1) << 24;

Status plan(PlanContext& context) {
  const TensorView& x = context.call.in[kX];
  const TensorView& w = context.call.in[kWeight];
  if (x.rank < 1) return expect_rank(context, kX, 2);
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kX, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, kX));
  if (x.rank > 2) LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kX));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kWeight, 2));
  if (w.layout == Layout::panels) {
    if (w.panel_rows != context.device.panel_rows) {
      return error(Code::kLayoutUnsupported, "matmul: weight: expected panels of %d rows, got %s of %d rows",
                   context.device.panel_rows, describe(w).c_str(), w.panel_rows);
    }
  } else {
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kWeight, {DType::f32, DType::f16, DType::bf16}));
    LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, kWeight));
  }
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kX, x.rank - 1, w.dims[1], "the columns of weight"));
  if (w.dims[1] > kMaxColumns) {
    return error(Code::kShapeMismatch, "matmul: weight: expected at most %lld columns, got %s", (long long)kMaxColumns,
                 describe(w).c_str());
  }
  const MatmulEpilogue epilogue = MatmulEpilogue(int(context.attributes[0]));
  const bool geglu = epilogue == MatmulEpilogue::geglu;
  if (geglu && !(w.layout == Layout::panels && (w.flags & kPanelGateUp))) {
    return error(
        Code::kLayoutUnsupported,
        "matmul: weight: the geglu epilogue expected gate and up stacked panel by panel (stackWeights), got %s",
        describe(w).c_str());
  }
  if (context.call.in[kBias].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kBias, 1));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kBias, {DType::f32}));
    LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kBias));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kBias, 0, w.dims[0], "the rows of weight"));
  }
  context.call.params_as<MatmulParams>().epilogue = epilogue;
  TensorView shape = x;
  shape.dims[x.rank - 1] = geglu ? w.dims[0] / 2 : w.dims[0];
  if (context.call.in[kResidual].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kResidual, {DType::f32}));
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kResidual, x.rank));
    LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kResidual));
    for (int i = 0; i < x.rank; ++i)
      LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kResidual, i, shape.dims[i], "the result"));
  }
  set_output_like(context, 0, context.attributes[1] == 1 ? DType::bf16 : DType::f32, shape);
  return {};
}

// Weights once, x once, the output once, and what it is added to.
Cost cost(const Call& call) {
  const TensorView& x = call.in[kX];
  const TensorView& w = call.in[kWeight];
  const double rows = double(row_count(x));
  const TensorView& residual = call.in[kResidual];
  return {double(storage_bytes(w)) + double(storage_bytes(x)) + double(storage_bytes(call.out[0])) +
              (residual.present() ? double(storage_bytes(residual)) : 0),
          2 * rows * double(w.dims[0]) * double(w.dims[1])};
}

}  // namespace

const Contract& contract_matmul() {
  static constexpr Contract contract = {"matmul", kInputs, 4, kAttributes, 2, kOutputs, 1, &plan, &cost};
  return contract;
}

}  // namespace lapidary
