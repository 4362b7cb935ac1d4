// sampling.cu: launchers of argmax, sample, adjust_logits, count_tokens and log_probs.
#include "ops/sampling.h"

#include "kernels/cuda/sampling/draw.cuh"
#include "kernels/cuda/sampling/log_probs.cuh"
#include "kernels/cuda/sampling/penalties.cuh"

namespace lapidary::cuda {
namespace {

constexpr int64_t kMostBlocks = int64_t(1) << 20;
int64_t grid_of(int64_t items) { return items < kMostBlocks ? items : kMostBlocks; }

LogitTable logit_table(const TensorView& logits) {
  return {logits.data, logits.strides[0], nullptr, 0, logits.dims[0], logits.dims[1], logits.dtype == DType::f32};
}

int64_t table_entries(const Call& call) { return call.in[0].dims[0] * chunk_count(call.in[0].dims[1]); }

// ── workspaces: sums of chunks, maxima of chunks, counts of chunks ──────────────────────────────────────────────────────
size_t maxima_bytes(const Call& call, const Properties&) { return size_t(table_entries(call)) * 4; }
size_t maxima_and_counts_bytes(const Call& call, const Properties&) { return size_t(table_entries(call)) * 8; }
size_t all_tables_bytes(const Call& call, const Properties&) { return size_t(table_entries(call)) * 16; }

void launch_maxima(const LogitTable& table, float* maxima, LaunchContext& context) {
  constexpr int64_t kWarps = ChunkMaxima::kThreads / dev::kWarp;
  const int64_t items = table.rows * chunk_count(table.vocabulary);
  launch<ChunkMaxima>(context, {grid_of(divide_up(items, kWarps))}, 0, ChunkMaximaArguments{table, maxima});
}

void launch_argmax(const Call& call, LaunchContext& context) {
  const LogitTable table = logit_table(call.in[ArgmaxInput::logits]);
  float* maxima = reinterpret_cast<float*>(context.workspace);
  launch_maxima(table, maxima, context);
  launch<Argmax>(context, {grid_of(table.rows)}, Argmax::kSharedBytes,
                 ArgmaxArguments{table, maxima, call.out[0].as<int32_t>()});
}

const char* const kSampleMessages[] = {
    "sample: settings: expected temperature and topK at least 0, topP and minP from 0 to 1, in row %lld of %lld",
};

const Code kSampleCodes[] = {Code::kInvalidArgument};

void launch_sample(const Call& call, LaunchContext& context) {
  SampleArguments p = {};
  p.table = logit_table(call.in[SampleInput::logits]);
  const TensorView& bias = call.in[SampleInput::bias];
  if (bias.present()) {
    p.table.bias = bias.as<const float>();
    p.table.bias_stride = bias.dims[0] == 1 ? 0 : bias.strides[0];
  }
  const int64_t entries = table_entries(call);
  p.chunk_sums = reinterpret_cast<uint64_t*>(context.workspace);
  float* maxima = reinterpret_cast<float*>(p.chunk_sums + entries);
  p.maxima = maxima;
  p.chunk_counts = reinterpret_cast<uint32_t*>(maxima + entries);
  p.state = call.in[SampleInput::state].as<int32_t>();
  p.settings = call.in[SampleInput::settings].as<const float>();
  p.defaults = call.params_as<SampleParams>();
  p.tokens = call.out[0].as<int32_t>();
  p.errors = context.error;
  launch_maxima(p.table, maxima, context);
  launch<Sample>(context, {grid_of(p.table.rows)}, Sample::kSharedBytes, p);
}

const char* const kAdjustMessages[] = {
    "adjust_logits: settings: expected a repetition penalty above 0 and finite others, in row %lld of %lld",
    "adjust_logits: rows: expected -1 ... %lld, got %lld",
};

const Code kAdjustCodes[] = {Code::kInvalidArgument, Code::kIndexOutOfRange};

void launch_adjust_logits(const Call& call, LaunchContext& context) {
  const TensorView& logits = call.in[AdjustLogitsInput::logits];
  const TensorView &counts = call.in[AdjustLogitsInput::counts], &bias = call.in[AdjustLogitsInput::bias];
  const TensorView& mask = call.in[AdjustLogitsInput::mask];
  AdjustLogitsArguments p = {};
  p.logits = logits.data;
  p.stride = logits.strides[0];
  p.rows = call.in[AdjustLogitsInput::rows].as<const int32_t>();
  p.settings = call.in[AdjustLogitsInput::settings].as<const float>();
  p.counts = counts.as<const int32_t>();
  p.counts_stride = counts.strides[0];
  p.bias = bias.as<const float>();
  p.bias_stride = bias.strides[0];
  p.mask = mask.as<const int32_t>();
  p.mask_stride = mask.strides[0];
  p.out = call.out[0].as<float>();
  p.row_count = logits.dims[0];
  p.vocabulary = logits.dims[1];
  p.sequences = counts.present() ? counts.dims[0] : bias.present() ? bias.dims[0] : INT64_MAX;
  p.f32 = logits.dtype == DType::f32;
  p.errors = context.error;
  launch<AdjustLogits>(context, {grid_of(p.row_count * divide_up(p.vocabulary, AdjustLogits::kPiece))}, 0, p);
}

const char* const kCountMessages[] = {
    "count_tokens: rows: expected -1 ... %lld, got %lld",
    "count_tokens: tokens: expected 0 ... %lld, got %lld",
};

void launch_count_tokens(const Call& call, LaunchContext& context) {
  const TensorView &tokens = call.in[CountTokensInput::tokens], &rows = call.in[CountTokensInput::rows];
  const TensorView& counts = call.in[CountTokensInput::counts];
  CountTokensArguments p = {};
  p.tokens = tokens.as<const int32_t>();
  p.rows = rows.as<const int32_t>();
  p.counts = counts.as<uint32_t>();
  p.stride = counts.strides[0];
  p.sequences = counts.dims[0];
  p.vocabulary = counts.dims[1];
  p.token_count = tokens.dims[0];
  p.one_row = rows.dims[0] == 1;
  p.prompt = call.params_as<CountTokensParams>().prompt;
  p.errors = context.error;
  launch<CountTokens>(context, {grid_of(divide_up(p.token_count, CountTokens::kThreads))}, 0, p);
}

const char* const kLogProbsMessages[] = {"log_probs: tokens: expected 0 ... %lld, got %lld"};

void launch_log_probs(const Call& call, LaunchContext& context) {
  LogProbsArguments p = {};
  p.table = logit_table(call.in[LogProbsInput::logits]);
  float* maxima = reinterpret_cast<float*>(context.workspace);
  p.maxima = maxima;
  p.chunk_counts = reinterpret_cast<uint32_t*>(maxima + table_entries(call));
  p.tokens = call.in[LogProbsInput::tokens].as<const int32_t>();
  p.chosen = call.out[0].as<float>();
  p.ids = call.out[1].as<int32_t>();
  p.values = call.out[2].as<float>();
  p.top = call.params_as<LogProbsParams>().top;
  p.errors = context.error;
  launch_maxima(p.table, maxima, context);
  launch<LogProbs>(context, {grid_of(p.table.rows)}, LogProbs::kSharedBytes, p);
}

}  // namespace

LAPIDARY_CUDA_KERNELS(sampling, {OpId::argmax, launch_argmax, maxima_bytes},
                      {OpId::sample, launch_sample, all_tables_bytes, kSampleMessages, kSampleCodes},
                      {OpId::adjust_logits, launch_adjust_logits, nullptr, kAdjustMessages, kAdjustCodes},
                      {OpId::count_tokens, launch_count_tokens, nullptr, kCountMessages},
                      {OpId::log_probs, launch_log_probs, maxima_and_counts_bytes, kLogProbsMessages})
}  // namespace lapidary::cuda
