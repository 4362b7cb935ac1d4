// attention/problem.cuh: a flash_attention call as its kernels see it, and its sequences. Device data that names positions is
// checked here, so that nothing below reads outside a tensor.
#pragma once
#include "kernels/cuda/device/device.h"
#include "kernels/cuda/launch.h"

namespace lapidary::cuda::attention {

using namespace dev;

// Plain data, filled in by the launcher. Strides are in elements; those of plain keys have page 0.
struct Problem {
  const unsigned char* q;
  const unsigned char* k;
  const unsigned char* v;
  unsigned char* out;  // [tokens, query_heads, head_dim]
  int64_t q_token, q_head;
  int64_t k_page, k_head, k_slot;
  int64_t v_page, v_head, v_slot;
  const int32_t *query_starts, *key_starts, *page_table, *key_lengths, *key_low, *key_high;
  const float *k_scales, *v_scales;
  int tokens, query_heads, kv_heads, group, head_dim;  // group = query_heads / kv_heads
  int sequences;
  int page_tokens, table_width, pages;  // paged only
  int keys;                             // plain: all keys; paged: the most that one table can hold at a time
  int window;                           // 0: no limit
  // Exponents to base 2: x = (q · k) · factor, or where capped x = tanh((q · k) · cap_factor) · cap. factor > 0: a negative scale is
  // the queries' sign.
  float factor, cap_factor, cap;
  bool capped, negated, causal;
  bool q_f32, out_f32, half_keys;  // half_keys: f16 where the kernel takes f32 too
  bool q_aligned, kv_aligned;      // rows lie on 16 bytes (i8: 8)
  // Decoding: partial results and who was last (split_keys.cuh).
  float* partials;
  uint32_t* tickets;
  int most_chunks;
  bool by_token;  // partial rows are numbered by token, else by sequence
  ErrorReporter errors;
};

// What errors.report() says; texts beside the launcher. As the CPU's kernels have them.
enum Message : uint32_t {
  kQueryStarts,
  kKeyStarts,
  kKeyLengths,
  kIntervals,
  kRing,
  kPages,
};

LAPIDARY_DEVICE bool is_paged(const Problem& p) { return p.page_table != nullptr; }

// Sequences with at most this many rows (tokens · heads of a group) are decoded: one tile of rows, keys cut into chunks.
static constexpr int kDecodeRows = 16;

// The longest sequence: blocks of keys end beyond it, in 32 bits.
static constexpr int64_t kMostKeyLength = int64_t(INT32_MAX) - 1023;

// Whether starts[0 … count] ascend within [0, limit]. All threads of the block call it; each looks at some.
LAPIDARY_DEVICE bool some_start_fails(const Problem& p, const int32_t* starts, int64_t limit, Message message) {
  if (starts == nullptr) return false;
  bool fails = false;
  for (int s = thread_index(); s <= p.sequences; s += block_threads()) {
    const int32_t start = load(starts + s), previous = s > 0 ? load(starts + s - 1) : 0;
    if (start >= previous && start <= limit) continue;
    p.errors.report(message, s, start);
    fails = true;
  }
  return fails;
}

// `flag`: a word of shared memory. All threads of the block come here.
LAPIDARY_DEVICE bool all_starts_hold(const Problem& p, uint32_t* flag) {
  if (p.query_starts == nullptr && p.key_starts == nullptr) return true;
  if (thread_index() == 0) store_shared(flag, 0u);
  block_barrier();
  const bool fails = some_start_fails(p, p.query_starts, p.tokens, kQueryStarts) ||
                     some_start_fails(p, p.key_starts, p.keys, kKeyStarts);
  if (fails) atomic_or(flag, 1u);
  block_barrier();
  return load_shared(flag) == 0;
}

struct Sequence {
  int index;
  int token_begin;  // its first query among all tokens
  int tokens;
  int key_begin;   // plain: where its key 0 lies among all keys
  int keys;        // keyLength
  int first_held;  // the first key that a ring still holds
};

LAPIDARY_DEVICE int tokens_of(const Problem& p, int sequence) {
  if (p.query_starts == nullptr) return p.tokens;
  return load(p.query_starts + sequence + 1) - load(p.query_starts + sequence);
}

LAPIDARY_DEVICE Sequence read_sequence(const Problem& p, int index, bool reports) {
  Sequence s;
  s.index = index;
  s.token_begin = p.query_starts ? load(p.query_starts + index) : 0;
  s.tokens = tokens_of(p, index);
  s.key_begin = p.key_starts ? load(p.key_starts + index) : 0;
  const int64_t allotted = is_paged(p)    ? kMostKeyLength
                           : p.key_starts ? int64_t(load(p.key_starts + index + 1)) - s.key_begin
                                          : int64_t(p.keys);
  int64_t keys = p.key_lengths ? int64_t(load(p.key_lengths + index)) : allotted;
  if (keys < 0 || keys > allotted) {
    if (reports) p.errors.report(kKeyLengths, index, keys);
    keys = 0;
  }
  s.keys = int(keys);
  s.first_held = is_paged(p) && keys > p.keys ? int(keys - p.keys) : 0;
  return s;
}

// The query rows of one sequence and kv head are (token, head of the group) pairs, so that the heads of a group share every key and
// value that is read: row r is token r / group, head r % group.
struct RowBlock {
  Sequence sequence;
  int kv_head;
  int64_t begin;    // its first row
  int token, head;  // of that row: in the sequence, in the group
  int rows;
};
LAPIDARY_DEVICE RowBlock make_row_block(const Problem& p, const Sequence& sequence, int kv_head, int64_t begin,
                                        int most) {
  const int64_t left = int64_t(sequence.tokens) * p.group - begin, token = begin / p.group;
  return {sequence, kv_head, begin, int(token), int(begin - token * p.group), int(left < most ? left : most)};
}

// The token of row `row` of the block, in the sequence.
LAPIDARY_DEVICE int token_of(const Problem& p, const RowBlock& block, int row) {
  return block.token + int(unsigned(block.head + row) / unsigned(p.group));
}

struct QueryPlace {
  int token;  // of all tokens
  int head;   // of all query heads
};
LAPIDARY_DEVICE QueryPlace query_of(const Problem& p, const RowBlock& block, int row) {
  const int tokens = int(unsigned(block.head + row) / unsigned(p.group));
  return {block.sequence.token_begin + block.token + tokens,
          block.kv_head * p.group + block.head + row - tokens * p.group};
}

LAPIDARY_DEVICE int64_t out_element(const Problem& p, QueryPlace place) {
  return (int64_t(place.token) * p.query_heads + place.head) * p.head_dim;
}

// Two neighbouring elements of the output.
LAPIDARY_DEVICE void store_pair(const Problem& p, int64_t element, float first, float second) {
  if (p.out_f32) {
    store(reinterpret_cast<Words2*>(p.out + 4 * element),
          Words2{{bit_cast<uint32_t>(first), bit_cast<uint32_t>(second)}});
  } else {
    store(reinterpret_cast<uint32_t*>(p.out + 2 * element), pack_bf16(first, second));
  }
}

// Zeros tokens [begin, end), by all threads of the grid.
LAPIDARY_DEVICE void zero_tokens(const Problem& p, int64_t begin, int64_t end, int block, int blocks) {
  const int64_t width = int64_t(p.query_heads) * p.head_dim;
  for (int64_t i = begin * width + 2 * (int64_t(block) * block_threads() + thread_index()); i < end * width;
       i += 2 * int64_t(blocks) * block_threads()) {
    store_pair(p, i, 0, 0);
  }
}

}  // namespace lapidary::cuda::attention
