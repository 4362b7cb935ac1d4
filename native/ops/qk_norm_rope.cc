#include "ops/qk_norm_rope.h"

#include <cinttypes>
#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

using In = QkNormRopeInput;
enum Attribute { kRopeTheta, kPositionScale, kRotaryDims, kRotate, kEps, kWeightBias, kValueNorm, kOutputDtype };

const InputSpec kInputs[] = {
    {"q"},
    {"k", true},
    {"v", true},
    {"qNorm", true},
    {"kNorm", true},
    {"positions"},
    {"kCache", true, true},
    {"vCache", true, true},
    {"slots", true},
    {"kScales", true, true},
    {"vScales", true, true},
};
static_assert(sizeof kInputs / sizeof kInputs[0] == In::kCount);

const AttributeSpec kAttributes[] = {
    {"ropeTheta", AttributeKind::number, NAN}, {"positionScale", AttributeKind::number, 1},
    {"rotaryDims", AttributeKind::integer, 0}, {"rotate", AttributeKind::boolean, 1},
    {"eps", AttributeKind::number, 1e-6},      {"weightBias", AttributeKind::number, 0},
    {"valueNorm", AttributeKind::boolean, 0},  {"outputDtype", AttributeKind::choice, 0, "same|f32|bf16"},
};
const char* const kOutputs[] = {"q", "k", "v"};

Status expect_presence(const PlanContext& context, int input, bool expected, const char* because) {
  if (context.call.in[input].present() == expected) return {};
  return error(Code::kInvalidArgument, "qk_norm_rope: %s: expected %s (%s)", kInputs[input].name,
               expected ? "a tensor" : "none", because);
}

Status expect_norm(const PlanContext& context, int input, int64_t head_dim) {
  if (!context.call.in[input].present()) return {};
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, head_dim, "headDim of q"));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::f32, DType::bf16, DType::f16}));
  return expect_contiguous(context, input);
}

Status expect_token_integers(const PlanContext& context, int input, int64_t tokens) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, tokens, "tokens of q"));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::i32}));
  return expect_contiguous(context, input);
}

Status expect_keys_and_values(const PlanContext& context) {
  const TensorView& q = context.call.in[In::q];
  const TensorView& k = context.call.in[In::k];
  LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::v, k.present(), "k and v come together"));
  if (!k.present()) return expect_presence(context, In::k_norm, false, "there is no k");
  for (int input : {In::k, In::v}) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 3));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, q.dims[0], "tokens of q"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 1, k.dims[1], "kvHeads of k"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 2, q.dims[2], "headDim of q"));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {q.dtype}));
    LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, input));
  }
  return expect_norm(context, In::k_norm, q.dims[2]);
}

Status expect_scales(const PlanContext& context) {
  const TensorView& cache = context.call.in[In::k_cache];
  const bool quantised = cache.present() && cache.dtype == DType::i8;
  for (int input : {In::k_scales, In::v_scales}) {
    LAPIDARY_RETURN_IF_ERROR(expect_presence(context, input, quantised, "an i8 cache has scales, no other has"));
    if (!quantised) continue;
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 3));
    for (int axis = 0; axis < 3; ++axis) {
      LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, axis, cache.dims[axis], "as the cache"));
    }
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::f32}));
    LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, input));
  }
  return {};
}

Status expect_cache(const PlanContext& context) {
  const TensorView& k = context.call.in[In::k];
  const TensorView& cache = context.call.in[In::k_cache];
  LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::v_cache, cache.present(), "kCache and vCache come together"));
  LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::slots, cache.present(), "slots index the cache"));
  LAPIDARY_RETURN_IF_ERROR(expect_scales(context));
  if (!cache.present()) return {};
  LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::k, true, "there is a cache to write to"));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::k_cache, {DType::f32, DType::bf16, DType::f16, DType::i8}));
  for (int input : {In::k_cache, In::v_cache}) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 4));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, cache.dims[0], "pages of kCache"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 1, k.dims[1], "kvHeads of k"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 2, cache.dims[2], "pageTokens of kCache"));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 3, k.dims[2], "headDim of k"));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {cache.dtype}));
    LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, input));
  }
  if (cache.dims[0] * cache.dims[2] > INT32_MAX) {
    return error(Code::kShapeMismatch, "qk_norm_rope: kCache: expected at most 2^31 - 1 slots, got %s",
                 describe(cache).c_str());
  }
  return expect_token_integers(context, In::slots, k.dims[0]);
}

Status plan_rotation(PlanContext& context, int64_t head_dim, QkNormRopeParams& params) {
  const double* attributes = context.attributes;
  const double theta = attributes[kRopeTheta], dims = attributes[kRotaryDims];
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kRopeTheta, theta > 0 && std::isfinite(theta), "a positive number"));
  const double scale = attributes[kPositionScale];
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kPositionScale, scale > 0 && std::isfinite(scale), "a positive number"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kRotaryDims,
                                            dims >= 0 && dims <= double(head_dim) && std::fmod(dims, 2) == 0,
                                            "an even number from 0 to headDim"));
  params.position_scale = scale;
  if (!attributes[kRotate]) return {};
  if (head_dim % 2 != 0) {
    return error(Code::kShapeMismatch, "qk_norm_rope: q: expected an even headDim to rotate, got %s",
                 describe(context.call.in[In::q]).c_str());
  }
  params.rotated_pairs = int32_t((dims == 0 ? head_dim : int64_t(dims)) / 2);
  params.frequency_step = std::pow(theta, -2.0 / double(head_dim));
  params.frequency_stride = std::pow(theta, -32.0 / double(head_dim));
  return {};
}

Status plan(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::q, 3));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::q, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, In::q));
  const TensorView& q = context.call.in[In::q];
  const int64_t head_dim = q.dims[2];
  if (head_dim < 1 || head_dim > kRopeMaxHeadDim) {
    return error(Code::kShapeMismatch, "qk_norm_rope: q: expected headDim from 1 to %" PRId64 ", got %s",
                 kRopeMaxHeadDim, describe(q).c_str());
  }
  LAPIDARY_RETURN_IF_ERROR(expect_norm(context, In::q_norm, head_dim));
  LAPIDARY_RETURN_IF_ERROR(expect_keys_and_values(context));
  LAPIDARY_RETURN_IF_ERROR(expect_token_integers(context, In::positions, q.dims[0]));
  LAPIDARY_RETURN_IF_ERROR(expect_cache(context));

  QkNormRopeParams& params = context.call.params_as<QkNormRopeParams>();
  params = {};
  LAPIDARY_RETURN_IF_ERROR(plan_rotation(context, head_dim, params));
  const double eps = context.attributes[kEps], bias = context.attributes[kWeightBias];
  LAPIDARY_RETURN_IF_ERROR(
      expect_attribute(context, kEps, float(eps) > 0 && std::isfinite(float(eps)), "a positive number"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kWeightBias, std::isfinite(float(bias)), "a finite number"));
  params.eps = float(eps);
  params.weight_bias = float(bias);
  params.value_norm = context.attributes[kValueNorm] != 0;

  const DType dtypes[] = {q.dtype, DType::f32, DType::bf16};
  const DType dtype = dtypes[int(context.attributes[kOutputDtype])];
  set_output_like(context, 0, dtype, q);
  if (context.call.in[In::k].present() && !context.call.in[In::k_cache].present()) {
    set_output_like(context, 1, dtype, context.call.in[In::k]);
    set_output_like(context, 2, dtype, context.call.in[In::v]);
  }
  return {};
}

// Every row is read and written once. A row of headDim elements takes about 2 operations for the mean square, 2 for the
// norm and 3 for the rotation of each element.
Cost cost(const Call& call) {
  Cost cost;
  const bool cached = call.in[In::k_cache].present();
  for (int input : {In::q, In::k, In::v}) {
    const TensorView& in = call.in[input];
    if (!in.present()) continue;
    const TensorView& to = input == In::q || !cached ? call.out[input] : call.in[In::k_cache];
    const double elements = double(element_count(in));
    cost.bytes += elements * (info(in.dtype).block_bytes + info(to.dtype).block_bytes);
    cost.operations += elements * 7;
  }
  return cost;
}

}  // namespace

const Contract& contract_qk_norm_rope() {
  static const Contract contract = {
      "qk_norm_rope", kInputs, In::kCount, kAttributes, int(sizeof kAttributes / sizeof kAttributes[0]),
      kOutputs,       3,       plan,       cost};
  return contract;
}

}  // namespace lapidary
