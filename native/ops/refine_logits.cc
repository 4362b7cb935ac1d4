#include "ops/refine_logits.h"

#include "ops/contract.h"

namespace lapidary {
namespace {

using In = RefineLogitsInput;
enum Attribute { kTop };

const InputSpec kInputs[] = {{"logits", false, true}, {"hidden"}, {"table"}};
static_assert(sizeof kInputs / sizeof kInputs[0] == In::kCount);
const AttributeSpec kAttributes[] = {{"top", AttributeKind::integer, 256}};

Status plan(PlanContext& context) {
  const TensorView &logits = context.call.in[In::logits], &table = context.call.in[In::table];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::logits, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::logits, {DType::f32}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, In::logits));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::table, 2));
  if (table.layout != Layout::panels) LAPIDARY_RETURN_IF_ERROR(expect_stored_matrix(context, In::table));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::table, 0, logits.dims[1], "vocabulary of logits"));
  if (logits.dims[1] < 1 || logits.dims[1] > INT32_MAX) {
    return error(Code::kShapeMismatch, "refine_logits: logits: expected a vocabulary from 1 to 2^31 - 1, got %s",
                 describe(logits).c_str());
  }
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::hidden, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::hidden, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, In::hidden));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::hidden, 0, logits.dims[0], "rows of logits"));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::hidden, 1, table.dims[1], "columns of table"));
  const double top = context.attributes[kTop];
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kTop, top >= 1 && top <= INT32_MAX, "at least 1"));
  context.call.params_as<RefineLogitsParams>() = {int64_t(top)};
  return {};
}

Cost cost(const Call& call) {
  const TensorView &logits = call.in[In::logits], &table = call.in[In::table];
  const double rows = double(logits.dims[0]), vocabulary = double(logits.dims[1]);
  const double top = double(call.params_as<RefineLogitsParams>().top);
  const double refined = rows * (top < vocabulary ? top : vocabulary);
  return {rows * vocabulary * 4 + refined * double(storage_bytes(table)) / vocabulary,
          refined * 2 * double(table.dims[1])};
}

}  // namespace

const Contract& contract_refine_logits() {
  static const Contract contract = {"refine_logits", kInputs, In::kCount, kAttributes, 1, nullptr, 0, plan, cost};
  return contract;
}

}  // namespace lapidary
