// problem.h: a flash_attention call decoded: which queries and keys each sequence has, and where they lie. Device data
// that names positions is checked here, so that nothing below reads outside a tensor.
#pragma once
#include "kernels/cpu/kernel.h"
#include "ops/flash_attention.h"

namespace lapidary {
namespace {
namespace attention {

using In = FlashAttentionInput;

struct Problem {
  const Call* call;
  const FlashAttentionParams* params;
  int64_t tokens;
  int query_heads, kv_heads, group, head_dim;  // group = query_heads / kv_heads
  int sequences;
  DType query_dtype, key_dtype, out_dtype;
  bool paged;
  int64_t page_tokens, table_width, pages;  // paged only
  int64_t keys;                             // plain: all keys; paged: the most that one table can hold at a time
  const int32_t *query_starts, *key_starts, *page_table, *key_lengths, *key_low, *key_high;
  const float *key_scales, *value_scales;
};

LAPIDARY_INLINE Problem read_problem(const Call& call) {
  Problem p;
  const TensorView& q = call.in[In::q];
  const TensorView& k = call.in[In::k];
  p.call = &call;
  p.params = &call.params_as<FlashAttentionParams>();
  p.tokens = q.dims[0];
  p.query_heads = int(q.dims[1]);
  p.head_dim = int(q.dims[2]);
  p.kv_heads = int(k.dims[1]);
  p.group = p.query_heads / p.kv_heads;
  p.sequences = p.params->sequences;
  p.query_dtype = q.dtype;
  p.key_dtype = k.dtype;
  p.out_dtype = call.out[0].dtype;
  p.paged = k.rank == 4;
  p.page_tokens = p.paged ? k.dims[2] : 1;
  p.table_width = p.paged ? call.in[In::page_table].dims[1] : 0;
  p.pages = p.paged ? k.dims[0] : 0;
  p.keys = p.paged ? p.table_width * p.page_tokens : k.dims[0];
  p.query_starts = call.in[In::query_starts].as<const int32_t>();
  p.key_starts = call.in[In::key_starts].as<const int32_t>();
  p.page_table = call.in[In::page_table].as<const int32_t>();
  p.key_lengths = call.in[In::key_lengths].as<const int32_t>();
  p.key_low = call.in[In::key_low].as<const int32_t>();
  p.key_high = call.in[In::key_high].as<const int32_t>();
  p.key_scales = call.in[In::k_scales].as<const float>();
  p.value_scales = call.in[In::v_scales].as<const float>();
  return p;
}

// Whether starts[0 … count] ascend within [0, limit]. Reports where they do not.
static bool starts_hold(const int32_t* starts, int count, int64_t limit, const char* message, Team& team) {
  if (!starts) return true;
  int32_t previous = 0;
  for (int s = 0; s <= count; ++s) {
    if (starts[s] < previous || starts[s] > limit) {
      team_fail(team, Code::kIndexOutOfRange, message, s, starts[s]);
      return false;
    }
    previous = starts[s];
  }
  return true;
}

static bool all_starts_hold(const Problem& p, Team& team) {
  return starts_hold(p.query_starts, p.sequences, p.tokens,
                     "flash_attention: queryStarts[%lld]: expected ascending numbers up to the tokens of q, got %lld",
                     team) &&
         starts_hold(p.key_starts, p.sequences, p.keys,
                     "flash_attention: keyStarts[%lld]: expected ascending numbers up to the keys of k, got %lld",
                     team);
}

// The longest sequence: blocks of keys end beyond it, in 32 bits.
static constexpr int64_t kMostKeyLength = int64_t(INT32_MAX) - 1023;

struct Sequence {
  int index;
  int64_t token_begin;  // its first query among all tokens
  int tokens;
  int64_t key_begin;  // plain: where its key 0 lies among all keys
  int keys;           // keyLength
  int first_held;     // the first key that a ring still holds
};

LAPIDARY_INLINE Sequence read_sequence(const Problem& p, int index, Team& team) {
  Sequence s;
  s.index = index;
  s.token_begin = p.query_starts ? p.query_starts[index] : 0;
  s.tokens = int((p.query_starts ? p.query_starts[index + 1] : p.tokens) - s.token_begin);
  s.key_begin = p.key_starts ? p.key_starts[index] : 0;
  const int64_t allotted = p.paged ? kMostKeyLength : p.key_starts ? p.key_starts[index + 1] - s.key_begin : p.keys;
  int64_t keys = p.key_lengths ? p.key_lengths[index] : allotted;
  if (keys < 0 || keys > allotted) {
    team_fail(team, Code::kIndexOutOfRange,
              "flash_attention: keyLengths[%lld]: expected 0 to the number of keys there are, got %lld", index, keys);
    keys = 0;
  }
  s.keys = int(keys);
  s.first_held = p.paged && keys > p.keys ? int(keys - p.keys) : 0;
  return s;
}

// The query rows of one sequence and kv head are (token, head of the group) pairs, so that the heads of a group share
// every key and value that is read: row r is token r / group, head r % group.
LAPIDARY_INLINE const unsigned char* query_row(const Problem& p, const Sequence& s, int kv_head, int64_t row) {
  const TensorView& q = p.call->in[In::q];
  const int64_t token = s.token_begin + row / p.group, head = int64_t(kv_head) * p.group + row % p.group;
  return q.data + (token * q.strides[0] + head * q.strides[1]) * (q.dtype == DType::f32 ? 4 : 2);
}

LAPIDARY_INLINE unsigned char* out_row(const Problem& p, const Sequence& s, int kv_head, int64_t row) {
  const TensorView& out = p.call->out[0];
  const int64_t token = s.token_begin + row / p.group, head = int64_t(kv_head) * p.group + row % p.group;
  return out.data + (token * p.query_heads + head) * p.head_dim * (out.dtype == DType::f32 ? 4 : 2);
}

static void zero_tokens(const Problem& p, int64_t begin, int64_t end) {
  const int64_t token_bytes = int64_t(p.query_heads) * p.head_dim * (p.out_dtype == DType::f32 ? 4 : 2);
  if (end > begin) memset(p.call->out[0].data + begin * token_bytes, 0, size_t((end - begin) * token_bytes));
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
