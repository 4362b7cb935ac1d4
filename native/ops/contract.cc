#include "ops/contract.h"

#include <cinttypes>
#include <cstring>

#include "ops/weight_panels.h"

namespace lapidary {

#define LAPIDARY_OP(name, stem) const Contract& contract_##name();
#include "ops/ops.def"
#undef LAPIDARY_OP

const Contract& contract(OpId op) {
  static const Contract* const contracts[] = {
#define LAPIDARY_OP(name, stem) &contract_##name(),
#include "ops/ops.def"
#undef LAPIDARY_OP
  };
  return *contracts[size_t(op)];
}

int64_t storage_bytes(const TensorView& view) {
  if (view.layout == Layout::panels) return panel_bytes(view) * panel_count(view);
  if (view.rank == 0) return info(view.dtype).block_bytes;
  return row_count(view) * row_bytes(view);
}

std::string describe(const TensorView& view) {
  std::string text = info(view.dtype).name;
  text += view.layout == Layout::panels ? " panels [" : " [";
  for (int i = 0; i < view.rank; ++i) text += (i ? ", " : "") + std::to_string(view.dims[i]);
  return text + "]";
}

namespace {

const char* op_name(const PlanContext& context) { return contract(context.call.op).name; }
const char* input_name(const PlanContext& context, int input) { return contract(context.call.op).inputs[input].name; }

}  // namespace

Status expect_rank(const PlanContext& context, int input, int rank) {
  const TensorView& view = context.call.in[input];
  if (view.rank == rank) return {};
  return error(Code::kShapeMismatch, "%s: %s: expected %d dimensions, got %s", op_name(context),
               input_name(context, input), rank, describe(view).c_str());
}

Status expect_dtype(const PlanContext& context, int input, std::initializer_list<DType> allowed) {
  const TensorView& view = context.call.in[input];
  std::string names;
  for (DType dtype : allowed) {
    if (view.dtype == dtype) return {};
    if (!names.empty()) names += " or ";
    names += info(dtype).name;
  }
  return error(Code::kDtypeUnsupported, "%s: %s: expected %s, got %s", op_name(context), input_name(context, input),
               names.c_str(), describe(view).c_str());
}

Status expect_stored_dtype(const PlanContext& context, int input) {
  return expect_dtype(
      context, input,
      {DType::f32, DType::f16, DType::bf16, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0,
       DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k, DType::iq4_nl, DType::iq4_xs, DType::sfp8});
}

Status expect_stored_matrix(const PlanContext& context, int input) {
  const TensorView& view = context.call.in[input];
  LAPIDARY_RETURN_IF_ERROR(expect_stored_dtype(context, input));
  LAPIDARY_RETURN_IF_ERROR(is_block(view.dtype) ? expect_contiguous(context, input)
                                                : expect_inner_contiguous(context, input));
  const int block = info(view.dtype).block;
  if (view.dims[1] % block == 0) return {};
  return error(Code::kShapeMismatch, "%s: %s: expected rows of a multiple of %d columns, got %s", op_name(context),
               input_name(context, input), block, describe(view).c_str());
}

Status expect_dim(const PlanContext& context, int input, int axis, int64_t expected, const char* because) {
  const TensorView& view = context.call.in[input];
  if (axis < view.rank && view.dims[axis] == expected) return {};
  return error(Code::kShapeMismatch, "%s: %s: expected dimension %d to be %" PRId64 " (%s), got %s", op_name(context),
               input_name(context, input), axis, expected, because, describe(view).c_str());
}

Status expect_contiguous(const PlanContext& context, int input) {
  const TensorView& view = context.call.in[input];
  if (view.layout == Layout::strided && is_contiguous(view)) return {};
  return error(Code::kLayoutUnsupported, "%s: %s: expected a contiguous tensor, got %s", op_name(context),
               input_name(context, input), describe(view).c_str());
}

Status expect_inner_contiguous(const PlanContext& context, int input) {
  const TensorView& view = context.call.in[input];
  const int last = view.rank - 1;
  if (view.layout == Layout::strided && (view.rank == 0 || view.dims[last] <= 1 || view.strides[last] == 1)) return {};
  return error(Code::kLayoutUnsupported, "%s: %s: expected a tensor whose last dimension is contiguous, got %s",
               op_name(context), input_name(context, input), describe(view).c_str());
}

Status expect_attribute(const PlanContext& context, int attribute, bool holds, const char* expected) {
  if (holds) return {};
  return error(Code::kInvalidArgument, "%s: %s: expected %s, got %g", op_name(context),
               contract(context.call.op).attributes[attribute].name, expected, context.attributes[attribute]);
}

void set_output(PlanContext& context, int index, DType dtype, std::initializer_list<int64_t> dims) {
  TensorView shape;
  for (int64_t dim : dims) shape.dims[shape.rank++] = dim;
  set_output_like(context, index, dtype, shape);
}

void set_output_like(PlanContext& context, int index, DType dtype, const TensorView& shape) {
  TensorView& out = context.call.out[index];
  out = TensorView();
  out.dtype = dtype;
  out.rank = shape.rank;
  int64_t stride = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    out.dims[i] = shape.dims[i];
    out.strides[i] = stride;
    stride *= shape.dims[i];
  }
  if (context.call.outputs <= index) context.call.outputs = uint8_t(index + 1);
}

}  // namespace lapidary
