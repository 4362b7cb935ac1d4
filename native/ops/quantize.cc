#include "ops/quantize.h"

#include <cinttypes>
#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

Cost copy_cost(const Call& call) {
  Cost cost;
  cost.bytes = double(storage_bytes(call.in[0]));
  for (int i = 0; i < call.outputs; ++i) cost.bytes += double(storage_bytes(call.out[i]));
  return cost;
}

// ── quantize ─────────────────────────────────────────────────────────────────────────────────────────────────────────

enum QuantizeAttribute { kFormat, kGroupSize, kScaleDtype };

const InputSpec kQuantizeInputs[] = {{"x"}};
const AttributeSpec kQuantizeAttributes[] = {
    {"format", AttributeKind::choice, 0, "q4_0|q8_0|i4"},
    {"groupSize", AttributeKind::integer, 32},
    {"scaleDtype", AttributeKind::choice, 1, "f16|bf16"},
};
const char* const kQuantizeOutputs[] = {"out", "scales"};

Status plan_quantize(PlanContext& context) {
  const TensorView& x = context.call.in[0];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, 0, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 0, {DType::f32, DType::f16, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, 0));
  const QuantizeFormat format = QuantizeFormat(int(context.attributes[kFormat]));
  const double group = context.attributes[kGroupSize];
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kGroupSize, group == 32 || group == 64 || group == 128, "32, 64 or 128"));
  const int64_t block = format == QuantizeFormat::i4 ? int64_t(group) : 32;
  if (x.dims[0] < 1 || x.dims[1] < 1 || x.dims[1] % block != 0) {
    return error(Code::kShapeMismatch, "quantize: x: expected rows of a multiple of %" PRId64 " columns, got %s", block,
                 describe(x).c_str());
  }
  context.call.params_as<QuantizeParams>() = {format, int32_t(block)};
  switch (format) {
    case QuantizeFormat::q4_0: set_output(context, 0, DType::q4_0, {x.dims[0], x.dims[1]}); break;
    case QuantizeFormat::q8_0: set_output(context, 0, DType::q8_0, {x.dims[0], x.dims[1]}); break;
    case QuantizeFormat::i4:
      set_output(context, 0, DType::i32, {x.dims[0], x.dims[1] / 8});
      set_output(context, 1, context.attributes[kScaleDtype] == 0 ? DType::f16 : DType::bf16,
                 {x.dims[0], x.dims[1] / block});
  }
  return {};
}

// ── dequantize ───────────────────────────────────────────────────────────────────────────────────────────────────────

const InputSpec kDequantizeInputs[] = {{"w"}};
const AttributeSpec kDequantizeAttributes[] = {
    {"outputDtype", AttributeKind::choice, 0, "f32|bf16"},
    {"scale", AttributeKind::number, 1},
};
const char* const kDequantizeOutputs[] = {"out"};

Status plan_dequantize(PlanContext& context) {
  const TensorView& w = context.call.in[0];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, 0, 2));
  const bool packed = w.layout == Layout::panels;
  const float scale = float(context.attributes[1]);
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, 1, scale == 1 || (!packed && w.dtype == DType::sfp8),
                                            "1 (only stored sfp8 has a tensor scale)"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, 1, std::isfinite(scale), "a finite number"));
  if (!packed) LAPIDARY_RETURN_IF_ERROR(expect_stored_matrix(context, 0));
  context.call.params_as<DequantizeParams>() = {scale};
  set_output(context, 0, context.attributes[0] == 0 ? DType::f32 : DType::bf16, {w.dims[0], w.dims[1]});
  return {};
}

}  // namespace

const Contract& contract_quantize() {
  static const Contract contract = {"quantize", kQuantizeInputs, 1,        kQuantizeAttributes, 3, kQuantizeOutputs,
                                    2,          plan_quantize,   copy_cost};
  return contract;
}

const Contract& contract_dequantize() {
  static const Contract contract = {
      "dequantize", kDequantizeInputs, 1, kDequantizeAttributes, 2, kDequantizeOutputs, 1, plan_dequantize, copy_cost};
  return contract;
}

}  // namespace lapidary
