#include "ops/sampling.h"

#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

using In = SampleInput;
enum Attribute { kTemperature, kTopK, kTopP, kMinP };

const InputSpec kArgmaxInputs[] = {{"logits"}};
const InputSpec kSampleInputs[] = {{"logits"}, {"state", false, true}, {"settings", true}, {"bias", true}};
static_assert(sizeof kSampleInputs / sizeof kSampleInputs[0] == In::kCount);
const AttributeSpec kSampleAttributes[] = {
    {"temperature", AttributeKind::number, 1},
    {"topK", AttributeKind::integer, 0},
    {"topP", AttributeKind::number, 1},
    {"minP", AttributeKind::number, 0},
};
const char* const kOutputs[] = {"tokens"};

// Both ops have logits as input 0 and one token per row as output 0.
Status plan_logits(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, 0, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 0, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, 0));
  const TensorView& logits = context.call.in[0];
  if (logits.dims[1] < 1 || logits.dims[1] > INT32_MAX) {
    return error(Code::kShapeMismatch, "%s: logits: expected a vocabulary from 1 to 2^31 - 1, got %s",
                 contract(context.call.op).name, describe(logits).c_str());
  }
  set_output(context, 0, DType::i32, {logits.dims[0]});
  return {};
}

// [rows, columns], contiguous.
Status expect_table(const PlanContext& context, int input, DType dtype, int64_t columns, const char* because) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {dtype}));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, context.call.in[In::logits].dims[0], "rows of logits"));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 1, columns, because));
  return expect_contiguous(context, input);
}

Status expect_bias(const PlanContext& context) {
  const TensorView &logits = context.call.in[In::logits], &bias = context.call.in[In::bias];
  if (!bias.present()) return {};
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::bias, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::bias, {DType::f32}));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::bias, 1, logits.dims[1], "vocabulary of logits"));
  if (bias.dims[0] != 1)
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::bias, 0, logits.dims[0], "rows of logits, or 1"));
  return expect_inner_contiguous(context, In::bias);
}

Status plan_argmax(PlanContext& context) { return plan_logits(context); }

Status plan_sample(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(plan_logits(context));
  LAPIDARY_RETURN_IF_ERROR(expect_table(context, In::state, DType::i32, 2, "seed and counter"));
  if (context.call.in[In::settings].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_table(context, In::settings, DType::f32, 4, "temperature, topK, topP and minP"));
  }
  LAPIDARY_RETURN_IF_ERROR(expect_bias(context));

  const double* attributes = context.attributes;
  const double temperature = attributes[kTemperature], top_k = attributes[kTopK];
  const double top_p = attributes[kTopP], min_p = attributes[kMinP];
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(
      context, kTemperature, temperature >= 0 && std::isfinite(float(temperature)), "a finite number, at least 0"));
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kTopK, top_k >= 0 && top_k <= INT32_MAX, "a number of tokens, or 0 for all"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kTopP, top_p >= 0 && top_p <= 1, "a probability from 0 to 1"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kMinP, min_p >= 0 && min_p <= 1, "a ratio from 0 to 1"));
  context.call.params_as<SampleParams>() = {float(temperature), float(top_k), float(top_p), float(min_p)};
  return {};
}

// Logits and bias are read once; comparisons and exponentials count as one operation each.
Cost cost_argmax(const Call& call) {
  const double elements = double(element_count(call.in[0]));
  return {elements * info(call.in[0].dtype).block_bytes, elements};
}

Cost cost_sample(const Call& call) {
  Cost cost = cost_argmax(call);
  if (call.in[In::bias].present()) cost.bytes += double(element_count(call.in[In::bias])) * 4;
  return cost;
}

}  // namespace

const Contract& contract_argmax() {
  static const Contract contract = {"argmax", kArgmaxInputs, ArgmaxInput::kCount, nullptr, 0, kOutputs,
                                    1,        plan_argmax,   cost_argmax};
  return contract;
}

const Contract& contract_sample() {
  static const Contract contract = {"sample", kSampleInputs, In::kCount, kSampleAttributes, 4, kOutputs,
                                    1,        plan_sample,   cost_sample};
  return contract;
}

}  // namespace lapidary
