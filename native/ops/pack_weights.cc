#include "ops/pack_weights.h"

#include <cinttypes>
#include <cmath>

#include "ops/contract.h"
#include "ops/packed_form.h"

namespace lapidary {
namespace {

enum PackInput { kWeight, kScales, kZeros, kColumnOrder };
enum PackAttribute { kFormat, kGroupSize, kScale };

const InputSpec kPackInputs[] = {{"weight"}, {"scales", true}, {"zeros", true}, {"columnOrder", true}};
const AttributeSpec kPackAttributes[] = {
    {"format", AttributeKind::choice, 0, "stored|i8_channel|i4_channel|gptq|gptq_v2|awq|compressed_tensors"},
    {"groupSize", AttributeKind::integer, -1},
    {"scale", AttributeKind::number, 1},
};
const char* const kPackedOutput[] = {"packed"};

Status expect_absent(const PlanContext& context, int input, const char* because) {
  if (!context.call.in[input].present()) return {};
  return error(Code::kInvalidArgument, "%s: %s: expected none (%s), got %s", contract(context.call.op).name,
               contract(context.call.op).inputs[input].name, because, describe(context.call.in[input]).c_str());
}

Status expect_present(const PlanContext& context, int input, const char* because) {
  if (context.call.in[input].present()) return {};
  return error(Code::kInvalidArgument, "%s: %s: expected a tensor (%s), got none", contract(context.call.op).name,
               contract(context.call.op).inputs[input].name, because);
}

Status expect_multiple(const PlanContext& context, const char* what, int64_t value, int64_t of) {
  if (value % of == 0) return {};
  return error(Code::kShapeMismatch, "%s: weight: expected %s to be a multiple of %" PRId64 ", got %" PRId64,
               contract(context.call.op).name, what, of, value);
}

Status expect_rows_and_columns(const PlanContext& context, int64_t rows, int64_t columns) {
  if (rows > 0 && columns > 0) return {};
  return error(Code::kShapeMismatch, "%s: weight: expected at least one row and one column, got %s",
               contract(context.call.op).name, describe(context.call.in[kWeight]).c_str());
}

// The packed output [rows, columns].
TensorView& set_panels(PlanContext& context, DType dtype, int64_t rows, int64_t columns) {
  set_output(context, 0, dtype, {rows, columns});
  TensorView& out = context.call.out[0];
  out.layout = Layout::panels;
  out.panel_rows = uint8_t(context.device.panel_rows);
  return out;
}

Status plan_stored(PlanContext& context) {
  const TensorView& weight = context.call.in[kWeight];
  LAPIDARY_RETURN_IF_ERROR(expect_absent(context, kScales, "a stored format holds its own scales"));
  LAPIDARY_RETURN_IF_ERROR(expect_absent(context, kZeros, "a stored format holds its own zero points"));
  LAPIDARY_RETURN_IF_ERROR(expect_absent(context, kColumnOrder, "only integer groups have one"));
  LAPIDARY_RETURN_IF_ERROR(expect_stored_dtype(context, kWeight));
  LAPIDARY_RETURN_IF_ERROR(expect_multiple(context, "columns", weight.dims[1], info(weight.dtype).block));
  if (is_block(weight.dtype)) LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kWeight));
  LAPIDARY_RETURN_IF_ERROR(expect_rows_and_columns(context, weight.dims[0], weight.dims[1]));
  set_panels(context, packed_dtype(context.device, weight.dtype), weight.dims[0], weight.dims[1]);
  return {};
}

// Scales of one per row: [N] or [N, 1].
Status expect_channel_scales(const PlanContext& context, int64_t rows) {
  LAPIDARY_RETURN_IF_ERROR(expect_present(context, kScales, "one scale per row"));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kScales, {DType::f32, DType::f16, DType::bf16}));
  const TensorView& scales = context.call.in[kScales];
  if (scales.rank != 1) LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kScales, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kScales, 0, rows, "rows of weight"));
  if (scales.rank == 2) LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kScales, 1, 1, "one scale per row"));
  if (scales.layout == Layout::strided) return {};
  return expect_contiguous(context, kScales);
}

Status plan_channel(PlanContext& context, PackWeightsParams& params) {
  const TensorView& weight = context.call.in[kWeight];
  const bool nibbles = params.format == WeightFormat::i4_channel;
  LAPIDARY_RETURN_IF_ERROR(expect_absent(context, kZeros, "channel formats are symmetric"));
  LAPIDARY_RETURN_IF_ERROR(expect_absent(context, kColumnOrder, "only integer groups have one"));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kWeight, {nibbles ? DType::u8 : DType::i8}));
  LAPIDARY_RETURN_IF_ERROR(expect_rows_and_columns(context, weight.dims[0], weight.dims[1]));
  LAPIDARY_RETURN_IF_ERROR(expect_channel_scales(context, weight.dims[0]));
  const int64_t columns = weight.dims[1] * (nibbles ? 2 : 1);
  params.group = int32_t(columns);
  set_panels(context, nibbles ? DType::i4 : DType::i8, weight.dims[0], columns);
  return {};
}

// Where rows and columns lie in the tensors of one integer format.
struct GroupLayout {
  int64_t rows, columns;
  int scale_rows_axis;        // the axis of scales (and of i8 zeros) that counts rows; the other counts groups
  bool zeros_pack_rows_last;  // zeros i32 [G, N/8]; else [N/8, G]
};

GroupLayout group_layout(WeightFormat format, const TensorView& weight) {
  switch (format) {
    case WeightFormat::awq: return {weight.dims[1] * 8, weight.dims[0], 1, true};
    case WeightFormat::compressed_tensors: return {weight.dims[0], weight.dims[1] * 8, 0, false};
    default: return {weight.dims[1], weight.dims[0] * 8, 1, true};
  }
}

Status expect_zeros(const PlanContext& context, WeightFormat format, const GroupLayout& layout, int64_t groups) {
  const TensorView& zeros = context.call.in[kZeros];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kZeros, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, kZeros));
  if (format == WeightFormat::compressed_tensors && zeros.dtype == DType::i8) {
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kZeros, 0, layout.rows, "rows of weight"));
    return expect_dim(context, kZeros, 1, groups, "groups of a row");
  }
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kZeros, {DType::i32}));
  const int rows_axis = layout.zeros_pack_rows_last ? 1 : 0;
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kZeros, rows_axis, (layout.rows + 7) / 8, "rows of weight / 8"));
  return expect_dim(context, kZeros, 1 - rows_axis, groups, "groups of a row");
}

Status plan_groups(PlanContext& context, PackWeightsParams& params) {
  const Call& call = context.call;
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kWeight, {DType::i32}));
  const GroupLayout layout = group_layout(params.format, call.in[kWeight]);
  LAPIDARY_RETURN_IF_ERROR(expect_rows_and_columns(context, layout.rows, layout.columns));
  LAPIDARY_RETURN_IF_ERROR(expect_present(context, kScales, "one scale per group"));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kScales, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kScales, {DType::f16, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, kScales));

  const double asked = context.attributes[kGroupSize];
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kGroupSize,
                                            asked == -1 || asked == 0 || asked == 32 || asked == 64 || asked == 128,
                                            "32, 64, 128, 0 (one scale per row) or -1 (from the shape of scales)"));
  const TensorView& scales = call.in[kScales];
  const int64_t stored_groups = scales.dims[1 - layout.scale_rows_axis];
  int64_t group = asked > 0 ? int64_t(asked) : layout.columns;
  if (asked == -1 && stored_groups > 1) group = (layout.columns + stored_groups - 1) / stored_groups;
  const bool per_row = group == layout.columns && asked <= 0;
  if (!per_row && group != 32 && group != 64 && group != 128) {
    return error(Code::kShapeMismatch,
                 "%s: scales: expected groups of 32, 64, 128 or all %" PRId64 " columns, got %s, groups of %" PRId64,
                 contract(call.op).name, layout.columns, describe(scales).c_str(), group);
  }
  LAPIDARY_RETURN_IF_ERROR(expect_multiple(context, "columns", layout.columns, group));
  const int64_t groups = layout.columns / group;
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kScales, layout.scale_rows_axis, layout.rows, "rows of weight"));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kScales, 1 - layout.scale_rows_axis, groups, "groups of a row"));
  if (call.in[kZeros].present()) LAPIDARY_RETURN_IF_ERROR(expect_zeros(context, params.format, layout, groups));
  if (call.in[kColumnOrder].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kColumnOrder, 1));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, kColumnOrder, {DType::i32}));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, kColumnOrder, 0, layout.columns, "columns of weight"));
    LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, kColumnOrder));
  }

  params.group = int32_t(group);
  TensorView& out = set_panels(context, DType::i4, layout.rows, layout.columns);
  if (!per_row) {
    out.group = uint16_t(group);
    out.scale_dtype = uint8_t(scales.dtype);
    if (group == 32 && !call.in[kZeros].present()) out.flags = kPanelSymmetric;
  }
  return {};
}

Status plan_pack_weights(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, kWeight, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, kWeight));
  PackWeightsParams& params = context.call.params_as<PackWeightsParams>();
  params = {WeightFormat(int(context.attributes[kFormat])), 0, float(context.attributes[kScale])};
  const bool is_sfp8 = params.format == WeightFormat::stored && context.call.in[kWeight].dtype == DType::sfp8;
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kScale, is_sfp8 || params.scale == 1, "1 (only sfp8 has a tensor scale)"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kScale, std::isfinite(params.scale), "a finite number"));
  switch (params.format) {
    case WeightFormat::stored: return plan_stored(context);
    case WeightFormat::i8_channel:
    case WeightFormat::i4_channel: return plan_channel(context, params);
    default: return plan_groups(context, params);
  }
}

Cost copy_cost(const Call& call) {
  Cost cost;
  for (int i = 0; i < call.inputs; ++i) cost.bytes += call.in[i].present() ? double(storage_bytes(call.in[i])) : 0;
  cost.bytes += double(storage_bytes(call.out[0]));
  return cost;
}

// ── stack_weights ────────────────────────────────────────────────────────────────────────────────────────────────────

const InputSpec kStackInputs[] = {{"a"}, {"b"}, {"c", true}};
const AttributeSpec kStackAttributes[] = {{"interleave", AttributeKind::choice, 0, "rows|gate_up"}};

Status expect_same_format(const PlanContext& context, int input) {
  const TensorView& first = context.call.in[0];
  const TensorView& view = context.call.in[input];
  const bool same = view.layout == Layout::panels && view.dtype == first.dtype && view.group == first.group &&
                    view.scale_dtype == first.scale_dtype && view.flags == first.flags &&
                    view.panel_rows == first.panel_rows && view.dims[1] == first.dims[1];
  if (same && !(view.flags & kPanelGateUp)) return {};
  return error(Code::kLayoutUnsupported,
               "stack_weights: %s: expected a packed matrix of the format and columns of %s, got %s",
               contract(context.call.op).inputs[input].name, describe(first).c_str(), describe(view).c_str());
}

Status plan_stack_weights(PlanContext& context) {
  const Call& call = context.call;
  const bool gate_up = context.attributes[0] == 1;
  context.call.params_as<StackWeightsParams>() = {gate_up};
  const int count = call.in[2].present() ? 3 : 2;
  if (gate_up) {
    LAPIDARY_RETURN_IF_ERROR(expect_absent(context, 2, "gate_up takes two matrices"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, 1, 0, call.in[0].dims[0], "rows of a"));
  }
  int64_t rows = 0;
  for (int i = 0; i < count; ++i) {
    LAPIDARY_RETURN_IF_ERROR(expect_same_format(context, i));
    rows += call.in[i].dims[0];
    if ((gate_up || i + 1 < count) && call.in[i].dims[0] % call.in[0].panel_rows != 0) {
      return error(Code::kShapeMismatch, "stack_weights: %s: expected a multiple of %d rows, got %s",
                   contract(call.op).inputs[i].name, call.in[0].panel_rows, describe(call.in[i]).c_str());
    }
  }
  const TensorView& first = call.in[0];
  set_output(context, 0, first.dtype, {rows, first.dims[1]});
  TensorView& out = context.call.out[0];
  out.layout = Layout::panels;
  out.panel_rows = first.panel_rows;
  out.group = first.group;
  out.scale_dtype = first.scale_dtype;
  out.flags = uint8_t(first.flags | (gate_up ? kPanelGateUp : 0));
  return {};
}

}  // namespace

const Contract& contract_pack_weights() {
  static const Contract contract = {"pack_weights",    kPackInputs, 4, kPackAttributes, 3, kPackedOutput, 1,
                                    plan_pack_weights, copy_cost};
  return contract;
}

const Contract& contract_stack_weights() {
  static const Contract contract = {"stack_weights",    kStackInputs, 3, kStackAttributes, 1, kPackedOutput, 1,
                                    plan_stack_weights, copy_cost};
  return contract;
}

}  // namespace lapidary
