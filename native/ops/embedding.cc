#include "ops/embedding.h"

#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

enum Input { kIds, kTable };
enum Attribute { kScale, kOutputDtype };

const InputSpec kInputs[] = {{"ids"}, {"table"}};
const AttributeSpec kAttributes[] = {
    {"scale", AttributeKind::number, 1},
    {"outputDtype", AttributeKind::choice, 0, "f32|bf16"},
};
const char* const kOutputs[] = {"out"};

Status plan(PlanContext& context) {
  const TensorView& table = context.call.in[kTable];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kIds, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kIds, {DType::i32}));
  LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kIds));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kTable, 2));
  if (table.layout != Layout::panels) LAPIDARY_RETURN_IF_ERROR(expect_stored_matrix(context, kTable));
  const float scale = float(context.attributes[kScale]);
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kScale, std::isfinite(scale), "a finite number"));
  context.call.params_as<EmbeddingParams>() = {scale};
  const DType dtype = context.attributes[kOutputDtype] == 0 ? DType::f32 : DType::bf16;
  set_output(context, 0, dtype, {context.call.in[kIds].dims[0], table.dims[1]});
  return {};
}

Cost cost(const Call& call) {
  const TensorView& table = call.in[kTable];
  const double tokens = double(call.in[kIds].dims[0]);
  const double row = double(storage_bytes(table)) / double(table.dims[0] > 0 ? table.dims[0] : 1);
  return {tokens * row + double(storage_bytes(call.in[kIds])) + double(storage_bytes(call.out[0])),
          tokens * double(table.dims[1])};
}

}  // namespace

const Contract& contract_embedding() {
  static const Contract contract = {"embedding", kInputs, 2, kAttributes, 2, kOutputs, 1, plan, cost};
  return contract;
}

}  // namespace lapidary
