#include "ops/row_ops.h"

#include <cinttypes>
#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

constexpr double kRequired = NAN;
const char* const kOutputDtypes = "same|f32|bf16|f16";
const char* const kOut[] = {"out"};
// More columns than f32 counts exactly would make the mean's divisor inexact.
constexpr int64_t kMaxColumns = int64_t(1) << 24;

int64_t columns(const TensorView& view) { return view.dims[view.rank - 1]; }

// The dtype that a choice of kOutputDtypes stands for.
DType output_dtype(double choice, DType same) {
  constexpr DType kDtypes[] = {DType::f32, DType::bf16, DType::f16};
  return choice == 0 ? same : kDtypes[int(choice) - 1];
}

// f32, bf16 or f16 rows.
Status expect_rows(const PlanContext& context, int input) {
  const TensorView& view = context.call.in[input];
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::f32, DType::bf16, DType::f16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, input));
  if (view.rank >= 1 && columns(view) < kMaxColumns) return {};
  const Contract& op = contract(context.call.op);
  return error(Code::kShapeMismatch, "%s: %s: expected 1 to %d dimensions, the last below 2^24, got %s", op.name,
               op.inputs[input].name, kMaxRank, describe(view).c_str());
}

Status expect_same_shape(const PlanContext& context, int input, int like) {
  const TensorView& view = context.call.in[input];
  const TensorView& other = context.call.in[like];
  bool same = view.rank == other.rank;
  for (int i = 0; same && i < view.rank; ++i) same = view.dims[i] == other.dims[i];
  if (same) return {};
  const Contract& op = contract(context.call.op);
  return error(Code::kShapeMismatch, "%s: %s: expected the shape of %s, %s, got %s", op.name, op.inputs[input].name,
               op.inputs[like].name, describe(other).c_str(), describe(view).c_str());
}

// An optional f32 row of `count` elements.
Status expect_row_of(const PlanContext& context, int input, int64_t count) {
  if (!context.call.in[input].present()) return {};
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::f32}));
  LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, input));
  return expect_dim(context, input, 0, count, "the columns of the rows");
}

Status expect_eps(const PlanContext& context, int attribute) {
  const double eps = context.attributes[attribute];
  return expect_attribute(context, attribute, eps >= 0 && std::isfinite(float(eps)), "a finite number of at least 0");
}

Status expect_finite(const PlanContext& context, int attribute) {
  return expect_attribute(context, attribute, std::isfinite(float(context.attributes[attribute])), "a finite number");
}

// Everything is read once and written once; `operations` per element of the first output.
Cost streamed(const Call& call, double operations) {
  double bytes = 0;
  for (int i = 0; i < call.inputs; ++i) {
    if (call.in[i].present()) bytes += double(storage_bytes(call.in[i]));
  }
  for (int i = 0; i < call.outputs; ++i) bytes += double(storage_bytes(call.out[i]));
  return {bytes, operations * double(element_count(call.out[0]))};
}

}  // namespace

// ── rms_norm ──────────────────────────────────────────────────────────────────────────────────────────────────────
namespace rms_norm {

const InputSpec kInputs[] = {{"x"}, {"weight", true}};
enum Attribute { kEps, kWeightBias, kOutputDtype };
const AttributeSpec kAttributes[] = {
    {"eps", AttributeKind::number, 1e-6},
    {"weightBias", AttributeKind::number, 0},
    {"outputDtype", AttributeKind::choice, 0, kOutputDtypes},
};

static Status plan(PlanContext& context) {
  using Input = RmsNormInput;
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, Input::x));
  const TensorView& x = context.call.in[Input::x];
  LAPIDARY_RETURN_IF_ERROR(expect_row_of(context, Input::weight, columns(x)));
  LAPIDARY_RETURN_IF_ERROR(expect_eps(context, kEps));
  LAPIDARY_RETURN_IF_ERROR(expect_finite(context, kWeightBias));
  context.call.params_as<RmsNormParams>() = {float(context.attributes[kEps]), float(context.attributes[kWeightBias])};
  set_output_like(context, 0, output_dtype(context.attributes[kOutputDtype], x.dtype), x);
  return {};
}

static Cost cost(const Call& call) { return streamed(call, 4); }

}  // namespace rms_norm

const Contract& contract_rms_norm() {
  using namespace rms_norm;
  static const Contract contract = {"rms_norm", kInputs, 2, kAttributes, 3, kOut, 1, plan, cost};
  return contract;
}

// ── add_rms_norm ──────────────────────────────────────────────────────────────────────────────────────────────────
namespace add_rms_norm {

const InputSpec kInputs[] = {{"x"}, {"residual"}, {"postWeight", true}, {"preWeight", true}};
enum Attribute { kEps, kWeightBias, kPostNorm, kNextNorm, kOutScale, kOutputDtype };
const AttributeSpec kAttributes[] = {
    {"eps", AttributeKind::number, 1e-6},    {"weightBias", AttributeKind::number, 0},
    {"postNorm", AttributeKind::boolean, 1}, {"nextNorm", AttributeKind::boolean, 1},
    {"outScale", AttributeKind::number, 1},  {"outputDtype", AttributeKind::choice, 0, kOutputDtypes},
};
const char* const kOutputs[] = {"residualOut", "normed"};

// A weight whose norm is switched off would be ignored in silence.
static Status expect_used(const PlanContext& context, int input, bool used, const char* norm) {
  if (used || !context.call.in[input].present()) return {};
  return error(Code::kInvalidArgument, "add_rms_norm: %s: expected no tensor, as %s is false, got %s",
               kInputs[input].name, norm, describe(context.call.in[input]).c_str());
}

static Status plan(PlanContext& context) {
  using Input = AddRmsNormInput;
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, Input::x));
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, Input::residual));
  LAPIDARY_RETURN_IF_ERROR(expect_same_shape(context, Input::residual, Input::x));
  const TensorView& residual = context.call.in[Input::residual];
  const bool post_norm = context.attributes[kPostNorm] != 0, next_norm = context.attributes[kNextNorm] != 0;
  LAPIDARY_RETURN_IF_ERROR(expect_used(context, Input::post_weight, post_norm, "postNorm"));
  LAPIDARY_RETURN_IF_ERROR(expect_used(context, Input::pre_weight, next_norm, "nextNorm"));
  LAPIDARY_RETURN_IF_ERROR(expect_row_of(context, Input::post_weight, columns(residual)));
  LAPIDARY_RETURN_IF_ERROR(expect_row_of(context, Input::pre_weight, columns(residual)));
  LAPIDARY_RETURN_IF_ERROR(expect_eps(context, kEps));
  LAPIDARY_RETURN_IF_ERROR(expect_finite(context, kWeightBias));
  LAPIDARY_RETURN_IF_ERROR(expect_finite(context, kOutScale));
  AddRmsNormParams& params = context.call.params_as<AddRmsNormParams>();
  params.eps = float(context.attributes[kEps]);
  params.weight_bias = float(context.attributes[kWeightBias]);
  params.out_scale = float(context.attributes[kOutScale]);
  params.post_norm = post_norm;
  params.next_norm = next_norm;
  set_output_like(context, 0, residual.dtype, residual);
  if (next_norm) {
    set_output_like(context, 1, output_dtype(context.attributes[kOutputDtype], residual.dtype), residual);
  }
  return {};
}

static Cost cost(const Call& call) { return streamed(call, 9); }

}  // namespace add_rms_norm

const Contract& contract_add_rms_norm() {
  using namespace add_rms_norm;
  static const Contract contract = {"add_rms_norm", kInputs, 4, kAttributes, 6, kOutputs, 2, plan, cost};
  return contract;
}

// ── layer_norm ────────────────────────────────────────────────────────────────────────────────────────────────────
namespace layer_norm {

const InputSpec kInputs[] = {{"x"}, {"weight", true}, {"bias", true}};
enum Attribute { kEps, kOutputDtype };
const AttributeSpec kAttributes[] = {
    {"eps", AttributeKind::number, 1e-6},
    {"outputDtype", AttributeKind::choice, 0, kOutputDtypes},
};

static Status plan(PlanContext& context) {
  using Input = LayerNormInput;
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, Input::x));
  const TensorView& x = context.call.in[Input::x];
  LAPIDARY_RETURN_IF_ERROR(expect_row_of(context, Input::weight, columns(x)));
  LAPIDARY_RETURN_IF_ERROR(expect_row_of(context, Input::bias, columns(x)));
  LAPIDARY_RETURN_IF_ERROR(expect_eps(context, kEps));
  context.call.params_as<LayerNormParams>() = {float(context.attributes[kEps])};
  set_output_like(context, 0, output_dtype(context.attributes[kOutputDtype], x.dtype), x);
  return {};
}

static Cost cost(const Call& call) { return streamed(call, 8); }

}  // namespace layer_norm

const Contract& contract_layer_norm() {
  using namespace layer_norm;
  static const Contract contract = {"layer_norm", kInputs, 3, kAttributes, 2, kOut, 1, plan, cost};
  return contract;
}

// ── gelu, geglu ───────────────────────────────────────────────────────────────────────────────────────────────────
namespace activation {

const InputSpec kGeluInputs[] = {{"x"}};
const InputSpec kGegluInputs[] = {{"gate"}, {"up", true}};
enum Attribute { kOutputDtype };
const AttributeSpec kAttributes[] = {{"outputDtype", AttributeKind::choice, 0, kOutputDtypes}};

static Status plan_gelu(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  const TensorView& x = context.call.in[0];
  set_output_like(context, 0, output_dtype(context.attributes[kOutputDtype], x.dtype), x);
  return {};
}

static Status plan_geglu(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  const TensorView& gate = context.call.in[0];
  TensorView shape = gate;
  if (context.call.in[1].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 1));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 1, {gate.dtype}));
    LAPIDARY_RETURN_IF_ERROR(expect_same_shape(context, 1, 0));
  } else {
    if (columns(gate) % 2 != 0) {
      return error(Code::kShapeMismatch, "geglu: gate: expected an even number of columns (gate, then up), got %s",
                   describe(gate).c_str());
    }
    shape.dims[shape.rank - 1] /= 2;
  }
  set_output_like(context, 0, output_dtype(context.attributes[kOutputDtype], gate.dtype), shape);
  return {};
}

// Each exponential and division counted as one operation.
static Cost cost_gelu(const Call& call) { return streamed(call, 7); }
static Cost cost_geglu(const Call& call) { return streamed(call, 8); }

}  // namespace activation

const Contract& contract_gelu() {
  using namespace activation;
  static const Contract contract = {"gelu", kGeluInputs, 1, kAttributes, 1, kOut, 1, plan_gelu, cost_gelu};
  return contract;
}

const Contract& contract_geglu() {
  using namespace activation;
  static const Contract contract = {"geglu", kGegluInputs, 2, kAttributes, 1, kOut, 1, plan_geglu, cost_geglu};
  return contract;
}

// ── add, softcap, cast ────────────────────────────────────────────────────────────────────────────────────────────
namespace elementwise {

const InputSpec kAddInputs[] = {{"a"}, {"b"}};
const AttributeSpec kAddAttributes[] = {{"outputDtype", AttributeKind::choice, 0, kOutputDtypes}};

static Status plan_add(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 1));
  const TensorView& a = context.call.in[0];
  const TensorView& b = context.call.in[1];
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 1, {a.dtype, DType::f32}));
  if (b.rank != 1) LAPIDARY_RETURN_IF_ERROR(expect_same_shape(context, 1, 0));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, 1, b.rank - 1, columns(a), "the columns of a"));
  set_output_like(context, 0, output_dtype(context.attributes[0], a.dtype), a);
  return {};
}

const InputSpec kUnaryInputs[] = {{"x"}};
enum SoftcapAttribute { kCap, kSoftcapOutputDtype };
const AttributeSpec kSoftcapAttributes[] = {
    {"cap", AttributeKind::number, kRequired},
    {"outputDtype", AttributeKind::choice, 0, kOutputDtypes},
};

static Status plan_softcap(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  const TensorView& x = context.call.in[0];
  const float cap = float(context.attributes[kCap]);
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kCap, std::isfinite(cap) && cap > 0, "a finite number above 0"));
  context.call.params_as<SoftcapParams>() = {cap};
  set_output_like(context, 0, output_dtype(context.attributes[kSoftcapOutputDtype], x.dtype), x);
  return {};
}

const AttributeSpec kCastAttributes[] = {{"dtype", AttributeKind::choice, kRequired, "f32|bf16|f16"}};

static Status plan_cast(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  const TensorView& x = context.call.in[0];
  set_output_like(context, 0, output_dtype(context.attributes[0] + 1, x.dtype), x);
  return {};
}

static Cost cost_add(const Call& call) { return streamed(call, 1); }
static Cost cost_softcap(const Call& call) { return streamed(call, 5); }
static Cost cost_cast(const Call& call) { return streamed(call, 0); }

}  // namespace elementwise

const Contract& contract_add() {
  using namespace elementwise;
  static const Contract contract = {"add", kAddInputs, 2, kAddAttributes, 1, kOut, 1, plan_add, cost_add};
  return contract;
}

const Contract& contract_softcap() {
  using namespace elementwise;
  static const Contract contract = {"softcap", kUnaryInputs, 1,           kSoftcapAttributes, 2, kOut,
                                    1,         plan_softcap, cost_softcap};
  return contract;
}

const Contract& contract_cast() {
  using namespace elementwise;
  static const Contract contract = {"cast", kUnaryInputs, 1, kCastAttributes, 1, kOut, 1, plan_cast, cost_cast};
  return contract;
}

// ── mean_rows ─────────────────────────────────────────────────────────────────────────────────────────────────────
namespace mean_rows {

using Input = MeanRowsInput;
const InputSpec kInputs[] = {{"x"}, {"starts"}};

static Status plan(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, Input::x));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, Input::x, 2));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, Input::starts, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, Input::starts, {DType::i32}));
  LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, Input::starts));
  const TensorView& starts = context.call.in[Input::starts];
  if (starts.dims[0] < 1) {
    return error(Code::kShapeMismatch, "mean_rows: starts: expected one more than there are sequences, got %s",
                 describe(starts).c_str());
  }
  set_output(context, 0, DType::f32, {starts.dims[0] - 1, columns(context.call.in[Input::x])});
  return {};
}

static Cost cost(const Call& call) {
  return {double(storage_bytes(call.in[Input::x])) + double(storage_bytes(call.out[0])),
          double(element_count(call.in[Input::x]))};
}

}  // namespace mean_rows

const Contract& contract_mean_rows() {
  using namespace mean_rows;
  static const Contract contract = {"mean_rows", kInputs, Input::kCount, nullptr, 0, kOut, 1, plan, cost};
  return contract;
}

// ── gather_columns ────────────────────────────────────────────────────────────────────────────────────────────────
namespace gather_columns {

const InputSpec kInputs[] = {{"x"}, {"order"}};

static Status plan(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rows(context, 0));
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, 1, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, 1, {DType::i32}));
  LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, 1));
  TensorView shape = context.call.in[0];
  shape.dims[shape.rank - 1] = context.call.in[1].dims[0];
  set_output_like(context, 0, shape.dtype, shape);
  return {};
}

static Cost cost(const Call& call) { return {2 * double(storage_bytes(call.out[0])), 0}; }

}  // namespace gather_columns

const Contract& contract_gather_columns() {
  using namespace gather_columns;
  static const Contract contract = {"gather_columns", kInputs, 2, nullptr, 0, kOut, 1, plan, cost};
  return contract;
}

}  // namespace lapidary
