#include "ops/probe.h"

#include "ops/contract.h"

namespace lapidary {
namespace {

constexpr InputSpec kInputs[] = {{"buffer"}};
constexpr AttributeSpec kAttributes[] = {
    {"kind", AttributeKind::choice, 0, "read|fma_f32|dot_i8|dot_bf16|tile_i8|tile_bf16"},
    {"repetitions", AttributeKind::integer, 1},
};
constexpr const char* kOutputs[] = {"operations"};

Status plan(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, 0));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 0, {DType::u8}));
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, 1, context.attributes[1] >= 0 && context.attributes[1] <= 1e12, "0 to 10¹²"));
  auto& params = context.call.params_as<ProbeParams>();
  params.kind = ProbeKind(int(context.attributes[0]));
  params.repetitions = int64_t(context.attributes[1]);
  set_output(context, 0, DType::f32, {context.device.threads});
  return {};
}

Cost cost(const Call& call) { return {double(element_count(call.in[0])), 0}; }

}  // namespace

const Contract& contract_probe() {
  static constexpr Contract contract = {"probe", kInputs, 1, kAttributes, 2, kOutputs, 1, &plan, &cost};
  return contract;
}

}  // namespace lapidary
