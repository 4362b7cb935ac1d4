#include "ops/flash_attention.h"

#include <cinttypes>
#include <cmath>

#include "ops/contract.h"

namespace lapidary {
namespace {

using In = FlashAttentionInput;
enum Attribute { kScale, kCausal, kWindow, kSoftcap, kOutputDtype };

const InputSpec kInputs[] = {
    {"q"},
    {"k"},
    {"v"},
    {"queryStarts", true},
    {"keyStarts", true},
    {"pageTable", true},
    {"keyLengths", true},
    {"keyLow", true},
    {"keyHigh", true},
    {"kScales", true},
    {"vScales", true},
};
static_assert(sizeof kInputs / sizeof kInputs[0] == In::kCount);

const AttributeSpec kAttributes[] = {
    {"scale", AttributeKind::number, 0},
    {"causal", AttributeKind::boolean, 1},
    {"window", AttributeKind::integer, 0},
    {"softcap", AttributeKind::number, 0},
    {"outputDtype", AttributeKind::choice, 0, "same|f32|bf16"},
};
const char* const kOutputs[] = {"out"};

// Key indices are 32-bit, and so are scratch offsets in units of rows.
constexpr int64_t kMaxKeys = INT32_MAX / 2;

Status expect_presence(const PlanContext& context, int input, bool expected, const char* because) {
  if (context.call.in[input].present() == expected) return {};
  return error(Code::kInvalidArgument, "flash_attention: %s: expected %s (%s)", kInputs[input].name,
               expected ? "a tensor" : "none", because);
}

Status expect_integers(const PlanContext& context, int input, int64_t count, const char* because) {
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, 1));
  LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, 0, count, because));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::i32}));
  return expect_contiguous(context, input);
}

Status expect_heads(const PlanContext& context) {
  const TensorView& q = context.call.in[In::q];
  const TensorView& k = context.call.in[In::k];
  LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::q, 3));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::q, {DType::f32, DType::bf16}));
  LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, In::q));
  const int64_t head_dim = q.dims[2];
  if (head_dim < 8 || head_dim > kAttentionMaxHeadDim || head_dim % 8 != 0) {
    return error(Code::kShapeMismatch,
                 "flash_attention: q: expected headDim to be a multiple of 8 from 8 to %d, got %s",
                 kAttentionMaxHeadDim, describe(q).c_str());
  }
  if (k.rank != 3 && k.rank != 4) {
    return error(
        Code::kShapeMismatch,
        "flash_attention: k: expected [keys, kvHeads, headDim] or [pages, kvHeads, pageTokens, headDim], got %s",
        describe(k).c_str());
  }
  for (int input : {In::k, In::v}) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, k.rank));
    for (int axis = 0; axis < k.rank - 1; ++axis) {
      LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, axis, k.dims[axis], "as k"));
    }
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, k.rank - 1, head_dim, "headDim of q"));
    LAPIDARY_RETURN_IF_ERROR(expect_inner_contiguous(context, input));
  }
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::k, {DType::f32, DType::bf16, DType::f16, DType::i8}));
  LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::v, {k.dtype}));
  if (k.dims[1] < 1 || q.dims[1] < 1 || q.dims[1] % k.dims[1] != 0) {
    return error(Code::kShapeMismatch,
                 "flash_attention: q: expected queryHeads to be a multiple of kvHeads (k is %s), got %s",
                 describe(k).c_str(), describe(q).c_str());
  }
  return {};
}

Status expect_scales(const PlanContext& context) {
  const TensorView& k = context.call.in[In::k];
  for (int input : {In::k_scales, In::v_scales}) {
    LAPIDARY_RETURN_IF_ERROR(
        expect_presence(context, input, k.dtype == DType::i8, "exactly i8 keys and values have scales"));
    if (k.dtype != DType::i8) continue;
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, input, k.rank - 1));
    for (int axis = 0; axis < k.rank - 1; ++axis) {
      LAPIDARY_RETURN_IF_ERROR(expect_dim(context, input, axis, k.dims[axis], "one scale per row of k"));
    }
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, input, {DType::f32}));
    LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, input));
  }
  return {};
}

// How many sequences there are, and where each one's keys lie.
Status plan_sequences(PlanContext& context, FlashAttentionParams& params) {
  const Call& call = context.call;
  const TensorView& k = call.in[In::k];
  const bool paged = k.rank == 4;
  int64_t sequences = 1;
  if (call.in[In::query_starts].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::query_starts, 1));
    sequences = call.in[In::query_starts].dims[0] - 1;
    if (sequences < 0 || sequences > kMaxKeys) {
      return error(Code::kShapeMismatch, "flash_attention: queryStarts: expected [sequences + 1], got %s",
                   describe(call.in[In::query_starts]).c_str());
    }
    LAPIDARY_RETURN_IF_ERROR(expect_integers(context, In::query_starts, sequences + 1, "sequences + 1"));
  }
  params.sequences = int32_t(sequences);
  LAPIDARY_RETURN_IF_ERROR(
      expect_presence(context, In::page_table, paged, "paged k and v have one, plain ones do not"));
  if (paged) {
    LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::key_starts, false, "k is paged"));
    LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::key_lengths, true, "k is paged"));
    LAPIDARY_RETURN_IF_ERROR(expect_rank(context, In::page_table, 2));
    LAPIDARY_RETURN_IF_ERROR(expect_dim(context, In::page_table, 0, sequences, "sequences"));
    LAPIDARY_RETURN_IF_ERROR(expect_dtype(context, In::page_table, {DType::i32}));
    LAPIDARY_RETURN_IF_ERROR(expect_contiguous(context, In::page_table));
    const int64_t width = call.in[In::page_table].dims[1];
    if (k.dims[2] > kMaxKeys || width > kMaxKeys || width * k.dims[2] > kMaxKeys) {
      return error(Code::kShapeMismatch,
                   "flash_attention: pageTable: expected at most %" PRId64 " keys per sequence, got %s", kMaxKeys,
                   describe(call.in[In::page_table]).c_str());
    }
  } else if (sequences > 1 || call.in[In::key_starts].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_presence(context, In::key_starts, true, "several sequences share k"));
    LAPIDARY_RETURN_IF_ERROR(expect_integers(context, In::key_starts, sequences + 1, "sequences + 1"));
  }
  if (!paged && k.dims[0] > kMaxKeys) {
    return error(Code::kShapeMismatch, "flash_attention: k: expected at most %" PRId64 " keys, got %s", kMaxKeys,
                 describe(k).c_str());
  }
  if (call.in[In::key_lengths].present()) {
    LAPIDARY_RETURN_IF_ERROR(expect_integers(context, In::key_lengths, sequences, "sequences"));
  }
  return {};
}

Status expect_intervals(const PlanContext& context) {
  const Call& call = context.call;
  LAPIDARY_RETURN_IF_ERROR(
      expect_presence(context, In::key_high, call.in[In::key_low].present(), "keyLow and keyHigh come together"));
  if (!call.in[In::key_low].present()) return {};
  for (int input : {In::key_low, In::key_high}) {
    LAPIDARY_RETURN_IF_ERROR(expect_integers(context, input, call.in[In::q].dims[0], "tokens of q"));
  }
  return {};
}

Status plan(PlanContext& context) {
  LAPIDARY_RETURN_IF_ERROR(expect_heads(context));
  LAPIDARY_RETURN_IF_ERROR(expect_scales(context));
  LAPIDARY_RETURN_IF_ERROR(expect_intervals(context));
  const TensorView& q = context.call.in[In::q];
  FlashAttentionParams& params = context.call.params_as<FlashAttentionParams>();
  params = {};
  LAPIDARY_RETURN_IF_ERROR(plan_sequences(context, params));

  const double* attributes = context.attributes;
  params.scale = float(attributes[kScale] == 0 ? 1 / std::sqrt(double(q.dims[2])) : attributes[kScale]);
  params.softcap = float(attributes[kSoftcap]);
  params.causal = attributes[kCausal] != 0;
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kScale, std::isfinite(params.scale), "a finite number"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kSoftcap, params.softcap >= 0 && std::isfinite(params.softcap),
                                            "0 or a positive number"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kWindow, attributes[kWindow] >= 0, "0 or a number of keys"));
  LAPIDARY_RETURN_IF_ERROR(expect_attribute(context, kWindow, params.causal || attributes[kWindow] == 0,
                                            "0 where causal is false (keyLow and keyHigh describe other windows)"));
  // A window beyond every key is none.
  params.window = attributes[kWindow] > double(kMaxKeys) ? 0 : int32_t(attributes[kWindow]);
  const DType choices[] = {q.dtype, DType::f32, DType::bf16};
  set_output(context, 0, choices[int(attributes[kOutputDtype])], {q.dims[0], q.dims[1], q.dims[2]});
  return {};
}

// From shapes alone: each sequence's share of tokens and keys is taken as equal, and intervals as causal and window
// say.
Cost cost(const Call& call) {
  const FlashAttentionParams& params = call.params_as<FlashAttentionParams>();
  const TensorView& q = call.in[In::q];
  const TensorView& k = call.in[In::k];
  if (params.sequences == 0 || q.dims[0] == 0) return {};
  const double tokens = double(q.dims[0]) / params.sequences;
  double keys = double(k.dims[0]) / params.sequences;
  if (k.rank == 4) keys = double(call.in[In::page_table].dims[1] * k.dims[2]);
  double pairs = tokens * keys;
  double read = keys;
  if (params.causal && !call.in[In::key_low].present()) {
    const double window = params.window ? params.window : keys;
    const double first = std::fmax(0, keys - tokens + 1);  // keys that the first query sees without a window
    const double ramp = std::fmin(std::fmax(0, window - first), tokens);
    pairs = ramp * (first + (ramp - 1) / 2) + (tokens - ramp) * std::fmin(window, keys);
    read = std::fmin(keys, tokens - 1 + window);
  }
  Cost cost;
  cost.operations = 4 * double(q.dims[1] * q.dims[2]) * pairs * params.sequences;
  const double row = double(k.dims[1] * q.dims[2]) * info(k.dtype).block_bytes;
  cost.bytes = 2 * row * read * params.sequences;
  cost.bytes += double(element_count(q)) * (info(q.dtype).block_bytes + info(call.out[0].dtype).block_bytes);
  return cost;
}

}  // namespace

const Contract& contract_flash_attention() {
  static const Contract contract = {"flash_attention", kInputs, In::kCount, kAttributes, 5, kOutputs, 1, plan, cost};
  return contract;
}

}  // namespace lapidary
