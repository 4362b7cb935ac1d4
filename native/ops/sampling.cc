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

// Input 0 of every op but count_tokens: f32|bf16 [rows, vocabulary].
Status expect_logits(const PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, 0, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 0, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, 0));
  const TensorView& logits = context.call.in[0];
  if (logits.dims[1] >= 1 && logits.dims[1] <= INT32_MAX) return {};
  return error(Code::kShapeMismatch, "%s: logits: expected a vocabulary from 1 to 2^31 - 1, got %s",
               contract(context.call.op).name, describe(logits).c_str());
}

// argmax and sample give one token per row.
Status plan_logits(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_logits(context));
  set_output(context, 0, DType::i32, {context.call.in[0].dims[0]});
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

// ── adjust_logits ────────────────────────────────────────────────────────────────────────────────────────────────────
using Adjust = AdjustLogitsInput;
const InputSpec kAdjustInputs[] = {{"logits"},       {"rows"},       {"settings"},
                                   {"counts", true}, {"bias", true}, {"mask", true}};
static_assert(sizeof kAdjustInputs / sizeof kAdjustInputs[0] == Adjust::kCount);
const char* const kAdjustOutputs[] = {"out"};

// i32 [count]
Status expect_indices(const PlanContext& context, int input, int64_t count, const char* because) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::i32}));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, count, because));
  return expect_contiguous(context, input);
}

// [sequences, vocabulary]
Status expect_sequences(const PlanContext& context, int input, DType dtype) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {dtype}));
  return expect_inner_contiguous(context, input);
}

Status plan_adjust_logits(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_logits(context));
  const TensorView& logits = context.call.in[Adjust::logits];
  LAPIDARY_RETURN_IF_ERROR(expect_indices(context, Adjust::rows, logits.dims[0], "rows of logits"));
  LAPIDARY_RETURN_IF_ERROR(
      expect_table(context, Adjust::settings, DType::f32, 3, "repetition, presence and frequency penalty"));
  const TensorView &counts = context.call.in[Adjust::counts], &bias = context.call.in[Adjust::bias];
  if (counts.present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_sequences(context, Adjust::counts, DType::i32));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, Adjust::counts, 1, logits.dims[1], "vocabulary of logits"));
  }
  if (bias.present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_sequences(context, Adjust::bias, DType::f32));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, Adjust::bias, 1, logits.dims[1], "vocabulary of logits"));
    if (counts.present())
      LAPIDARY_RETURN_IF_ERROR(expect_dim(context, Adjust::bias, 0, counts.dims[0], "rows of counts"));
  }
  if (context.call.in[Adjust::mask].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_sequences(context, Adjust::mask, DType::i32));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, Adjust::mask, 0, logits.dims[0], "rows of logits"));
    LAPIDARY_RETURN_IF_ERROR(
        expect_dim(context, Adjust::mask, 1, (logits.dims[1] + 31) / 32, "a bit per token of the vocabulary"));
  }
  set_output_like(context, 0, DType::f32, logits);
  return {};
}

Cost cost_adjust_logits(const Call& call) {
  const double elements = double(element_count(call.out[0]));
  const int tables = int(call.in[Adjust::counts].present()) + int(call.in[Adjust::bias].present());
  const double mask_bytes = call.in[Adjust::mask].present() ? 1.0 / 8 : 0;
  return {elements * (info(call.in[0].dtype).block_bytes + 4 * tables + mask_bytes + 4), elements * (1 + 6 * tables)};
}

// ── count_tokens ─────────────────────────────────────────────────────────────────────────────────────────────────────
using Count = CountTokensInput;
const InputSpec kCountInputs[] = {{"tokens"}, {"rows"}, {"counts", false, true}};
static_assert(sizeof kCountInputs / sizeof kCountInputs[0] == Count::kCount);
const AttributeSpec kCountAttributes[] = {{"prompt", AttributeKind::boolean, 0}};

Status plan_count_tokens(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, Count::tokens, 1));
  const int64_t tokens = context.call.in[Count::tokens].dims[0];
  LAPIDARY_RETURN_IF_ERROR(expect_indices(context, Count::tokens, tokens, "tokens"));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, Count::rows, 1));
  const bool one = context.call.in[Count::rows].dims[0] == 1;
  LAPIDARY_RETURN_IF_ERROR(expect_indices(context, Count::rows, one ? 1 : tokens, "tokens, or 1"));
  LAPIDARY_RETURN_IF_ERROR(expect_sequences(context, Count::counts, DType::i32));
  context.call.params_as<CountTokensParams>() = {context.attributes[0] == 1};
  return {};
}

Cost cost_count_tokens(const Call& call) {
  const double tokens = double(call.in[Count::tokens].dims[0]);
  return {tokens * 16, tokens};
}

// ── log_probs ────────────────────────────────────────────────────────────────────────────────────────────────────────
const InputSpec kLogProbsInputs[] = {{"logits"}, {"tokens"}};
static_assert(sizeof kLogProbsInputs / sizeof kLogProbsInputs[0] == LogProbsInput::kCount);
const AttributeSpec kLogProbsAttributes[] = {{"top", AttributeKind::integer, 0}};
const char* const kLogProbsOutputs[] = {"chosen", "ids", "values"};

Status plan_log_probs(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_logits(context));
  const TensorView& logits = context.call.in[LogProbsInput::logits];
  LAPIDARY_RETURN_IF_ERROR(expect_indices(context, LogProbsInput::tokens, logits.dims[0], "rows of logits"));
  const double top = context.attributes[0];
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, 0, top >= 0 && top <= kMaxTop && top <= double(logits.dims[1]),
                                            "0 to 256 tokens, at most the vocabulary"));
  context.call.params_as<LogProbsParams>() = {int32_t(top)};
  set_output(context, 0, DType::f32, {logits.dims[0]});
  set_output(context, 1, DType::i32, {logits.dims[0], int64_t(top)});
  set_output(context, 2, DType::f32, {logits.dims[0], int64_t(top)});
  return {};
}

// An exponential counts as one operation.
Cost cost_log_probs(const Call& call) {
  const double elements = double(element_count(call.in[0]));
  return {elements * info(call.in[0].dtype).block_bytes, 4 * elements};
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

const Contract& contract_adjust_logits() {
  static const Contract contract = {
      "adjust_logits",    kAdjustInputs,     Adjust::kCount, nullptr, 0, kAdjustOutputs, 1,
      plan_adjust_logits, cost_adjust_logits};
  return contract;
}

const Contract& contract_count_tokens() {
  static const Contract contract = {"count_tokens",    kCountInputs,     Count::kCount, kCountAttributes, 1, nullptr, 0,
                                    plan_count_tokens, cost_count_tokens};
  return contract;
}

const Contract& contract_log_probs() {
  static const Contract contract = {
      "log_probs", kLogProbsInputs, LogProbsInput::kCount, kLogProbsAttributes, 1, kLogProbsOutputs,
      3,           plan_log_probs,  cost_log_probs};
  return contract;
}

}  // namespace lapidary
