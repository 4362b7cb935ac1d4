// flash_attention.cu: chooses the tiles of a flash_attention call and queues its launches.
#include "kernels/cuda/flash_attention.cuh"

#include "ops/flash_attention.h"

namespace lapidary::cuda::attention {
namespace {

using In = FlashAttentionInput;

const char* const kMessages[] = {
    "flash_attention: queryStarts[%lld]: expected ascending numbers up to the tokens of q, got %lld",
    "flash_attention: keyStarts[%lld]: expected ascending numbers up to the keys of k, got %lld",
    "flash_attention: keyLengths[%lld]: expected 0 to the number of keys there are, got %lld",
    "flash_attention: keyLow, keyHigh: expected 0 to the sequence's keys, got [%lld, %lld)",
    "flash_attention: pageTable: a row sees key %lld, but its ring holds keys from %lld on",
    "flash_attention: pageTable: sequence %lld names page %lld",
};

// The most blocks of threads that a launch asks for; each then takes several items.
constexpr int64_t kMostBlocks = int64_t(1) << 24;

bool multiple(int64_t bytes, int64_t of) { return bytes % of == 0; }

// Whether every row of `view` lies on `unit` bytes.
bool rows_aligned(const TensorView& view, int64_t unit) {
  const int64_t bytes = info(view.dtype).block_bytes;
  bool aligned = multiple(int64_t(reinterpret_cast<uintptr_t>(view.data)), unit);
  for (int axis = 0; axis + 1 < view.rank; ++axis) {
    aligned = aligned && (view.dims[axis] <= 1 || multiple(view.strides[axis] * bytes, unit));
  }
  return aligned;
}

// The most keys that a decoding row block's tiles may span.
int64_t most_keys(const Call& call) {
  const TensorView& k = call.in[In::k];
  const FlashAttentionParams& params = call.params_as<FlashAttentionParams>();
  const int64_t keys = k.rank == 4 ? call.in[In::page_table].dims[1] * k.dims[2] : k.dims[0];
  const int64_t window = params.window + int64_t(kDecodeRows);
  const bool windowed = params.window > 0 && !call.in[In::key_low].present();
  return (windowed && window < keys ? window : keys) + kChunkKeys;  // tiles begin before their keys
}

int most_chunks(const Call& call) {
  const int64_t chunks = divide_up(most_keys(call), kChunkKeys);
  return int(chunks < kMostChunks ? chunks : kMostChunks);
}

struct PartialRows {
  int64_t count;
  bool by_token;
};
PartialRows partial_rows(const Call& call) {
  const TensorView &q = call.in[In::q], &k = call.in[In::k];
  const int64_t by_token = q.dims[0] * (q.dims[1] / k.dims[1]);
  const int64_t by_sequence = int64_t(call.params_as<FlashAttentionParams>().sequences) * kDecodeRows;
  return {by_token < by_sequence ? by_token : by_sequence, by_token < by_sequence};
}

size_t workspace_bytes(const Call& call, const Properties&) {
  const TensorView &q = call.in[In::q], &k = call.in[In::k];
  return size_t(partial_rows(call).count * k.dims[1] * most_chunks(call) * partial_stride(int(q.dims[2]))) *
         sizeof(float);
}

Problem read_problem(const Call& call, const LaunchContext& context) {
  constexpr float kLog2E = 1.44269504088896340736f;
  const TensorView &q = call.in[In::q], &k = call.in[In::k], &v = call.in[In::v];
  const FlashAttentionParams& params = call.params_as<FlashAttentionParams>();
  const bool paged = k.rank == 4;
  Problem p = {};
  p.q = q.data;
  p.k = k.data;
  p.v = v.data;
  p.out = call.out[0].data;
  p.q_token = q.strides[0];
  p.q_head = q.strides[1];
  p.k_head = k.strides[1];
  p.v_head = v.strides[1];
  p.k_page = paged ? k.strides[0] : 0;
  p.v_page = paged ? v.strides[0] : 0;
  p.k_slot = k.strides[paged ? 2 : 0];
  p.v_slot = v.strides[paged ? 2 : 0];
  p.query_starts = call.in[In::query_starts].as<const int32_t>();
  p.key_starts = call.in[In::key_starts].as<const int32_t>();
  p.page_table = call.in[In::page_table].as<const int32_t>();
  p.key_lengths = call.in[In::key_lengths].as<const int32_t>();
  p.key_low = call.in[In::key_low].as<const int32_t>();
  p.key_high = call.in[In::key_high].as<const int32_t>();
  p.k_scales = call.in[In::k_scales].as<const float>();
  p.v_scales = call.in[In::v_scales].as<const float>();
  p.tokens = int(q.dims[0]);
  p.query_heads = int(q.dims[1]);
  p.kv_heads = int(k.dims[1]);
  p.group = p.query_heads / p.kv_heads;
  p.head_dim = int(q.dims[2]);
  p.sequences = params.sequences;
  p.page_tokens = paged ? int(k.dims[2]) : 1;
  p.table_width = paged ? int(call.in[In::page_table].dims[1]) : 0;
  p.pages = paged ? int(k.dims[0] < INT32_MAX ? k.dims[0] : INT32_MAX) : 0;
  p.keys = int(paged ? p.table_width * int64_t(p.page_tokens) : k.dims[0]);
  p.window = params.window;
  p.causal = params.causal;
  p.capped = params.softcap > 0;
  p.negated = params.scale < 0;
  const float scale = p.negated ? -params.scale : params.scale;
  p.factor = scale * kLog2E > 0x1p-126f ? scale * kLog2E : 0x1p-126f;  // not 0, which −∞ does not take
  p.cap_factor = p.capped ? scale / params.softcap : 0;
  p.cap = params.softcap * kLog2E;
  p.q_f32 = q.dtype == DType::f32;
  p.out_f32 = call.out[0].dtype == DType::f32;
  p.half_keys = k.dtype == DType::f16;
  p.q_aligned = rows_aligned(q, 16);
  const int64_t unit = k.dtype == DType::i8 ? 8 : 16;
  p.kv_aligned = rows_aligned(k, unit) && rows_aligned(v, unit);
  p.partials = reinterpret_cast<float*>(context.workspace);
  p.tickets = context.counters;
  p.most_chunks = most_chunks(call);
  p.by_token = partial_rows(call).by_token;
  p.errors = context.error;
  return p;
}

int64_t at_most(int64_t count, int64_t limit) { return count < limit ? count : limit; }

// Zeros rows of no sequence, too; so it is launched whatever there is to decode. Tickets are (sequence, kv head) pairs: more than
// there are counters go in several launches.
template <class Tile>
void launch_decode(const Problem& problem, LaunchContext& context) {
  const int64_t pairs = int64_t(problem.sequences) * problem.kv_heads;
  DecodeParams params = {problem, 0, 0};
  do {
    params.pairs = at_most(pairs - params.first_pair, kCounters);
    const int64_t items = params.pairs * problem.most_chunks;
    launch<Decode<Tile>>(context, {at_most(items > 0 ? items : 1, kMostBlocks)}, sizeof(typename Tile::Shared), params);
    params.first_pair += kCounters;
  } while (params.first_pair < pairs);
}

template <class Tile>
void launch_prefill(const Problem& problem, LaunchContext& context) {
  const int64_t rows = int64_t(problem.tokens) * problem.group;
  if (rows <= kDecodeRows) return;
  // A sequence's last block may not be full; those that are decoded have none.
  const int64_t row_blocks = rows / Tile::kRows + at_most(problem.sequences, rows / (kDecodeRows + 1));
  launch<Prefill<Tile>>(context, {at_most(row_blocks * problem.kv_heads, kMostBlocks)}, sizeof(typename Tile::Shared),
                        PrefillParams{problem, row_blocks});
}

template <int kPrefillD, int kDecodeD, bool kBytes>
void launch_mma(const Problem& problem, LaunchContext& context) {
  launch_decode<MmaTile<DecodeSize<kDecodeD, kBytes>>>(problem, context);
  launch_prefill<MmaTile<PrefillSize<kPrefillD, kBytes>>>(problem, context);
}

template <int kD>
void launch_fma(const Problem& problem, LaunchContext& context) {
  launch_decode<FmaTile<kD>>(problem, context);
  launch_prefill<FmaTile<kD>>(problem, context);
}

void launch_flash_attention(const Call& call, LaunchContext& context) {
  if (element_count(call.out[0]) == 0) return;
  const Problem p = read_problem(call, context);
  const int d = p.head_dim;
  switch (call.in[In::k].dtype) {
    case DType::bf16:
      return d <= 64    ? launch_mma<64, 64, false>(p, context)
             : d <= 80  ? launch_mma<80, 128, false>(p, context)
             : d <= 96  ? launch_mma<96, 128, false>(p, context)
             : d <= 128 ? launch_mma<128, 128, false>(p, context)
             : d <= 256 ? launch_mma<256, 256, false>(p, context)
                        : launch_mma<512, 512, false>(p, context);
    case DType::i8:
      return d <= 64    ? launch_mma<64, 64, true>(p, context)
             : d <= 128 ? launch_mma<128, 128, true>(p, context)
             : d <= 256 ? launch_mma<256, 256, true>(p, context)
                        : launch_mma<512, 512, true>(p, context);
    default:
      return d <= 64    ? launch_fma<64>(p, context)
             : d <= 128 ? launch_fma<128>(p, context)
             : d <= 256 ? launch_fma<256>(p, context)
                        : launch_fma<512>(p, context);
  }
}

}  // namespace
}  // namespace lapidary::cuda::attention

namespace lapidary::cuda {
LAPIDARY_CUDA_KERNELS(flash_attention, {OpId::flash_attention, attention::launch_flash_attention,
                                        attention::workspace_bytes, attention::kMessages})
}
