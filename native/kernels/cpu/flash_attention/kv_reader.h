// kv_reader.h: where the rows of a run of keys and values lie, whatever holds them: plain tensors, pages, a ring of
// pages.
#pragma once
#include "kernels/cpu/flash_attention/problem.h"

namespace lapidary {
namespace {
namespace attention {

static constexpr int kBlockKeys = 128;  // the longest run; why 128: prefill.h

struct KeyRows {
  const unsigned char* keys[kBlockKeys];  // head_dim elements each
  const unsigned char* values[kBlockKeys];
};

struct KeyScales {  // of i8 rows
  float keys[kBlockKeys];
  float values[kBlockKeys];
};

LAPIDARY_INLINE int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2; }

// Keys that lie evenly spaced: up to the end of a page, or all of a plain tensor.
struct KeyRun {
  int64_t page, slot;  // plain: page 0
  int count;
};
// The run that begins at logical key `key`, of at most `count` keys. Whether the page is one of the cache's is not
// checked.
LAPIDARY_INLINE KeyRun find_run(const Problem& p, const Sequence& s, int64_t key, int count) {
  if (!p.paged) return {0, s.key_begin + key, count};
  const int64_t slot = key % p.page_tokens;
  const int64_t rest = p.page_tokens - slot;
  return {p.page_table[s.index * p.table_width + key / p.page_tokens % p.table_width], slot,
          rest < count ? int(rest) : count};
}

// Bytes between the same key's rows of two kv heads.
LAPIDARY_INLINE int64_t head_bytes(const Problem& p, In::Index input) {
  return p.call->in[input].strides[1] * element_bytes(p.key_dtype);
}

// The rows of logical keys [begin, begin + count). False, and reported, where a page number is not one of the cache's.
static bool find_rows(const Problem& p, const Sequence& s, int kv_head, int begin, int count, KeyRows& rows,
                      Team& team) {
  const TensorView& k = p.call->in[In::k];
  const TensorView& v = p.call->in[In::v];
  const int64_t bytes = element_bytes(p.key_dtype);
  const int slots = p.paged ? 2 : 0;  // the axis that counts keys
  const int64_t key_stride = k.strides[slots] * bytes, value_stride = v.strides[slots] * bytes;
  for (int i = 0; i < count;) {
    const KeyRun run = find_run(p, s, int64_t(begin) + i, count - i);
    if (p.paged && (run.page < 0 || run.page >= p.pages)) {
      team_fail(team, Code::kIndexOutOfRange, "flash_attention: pageTable: sequence %lld names page %lld", s.index,
                run.page);
      return false;
    }
    const int64_t key_page = p.paged ? run.page * k.strides[0] : 0, value_page = p.paged ? run.page * v.strides[0] : 0;
    const unsigned char* key = k.data + (key_page + kv_head * k.strides[1]) * bytes + run.slot * key_stride;
    const unsigned char* value = v.data + (value_page + kv_head * v.strides[1]) * bytes + run.slot * value_stride;
    for (int j = 0; j < run.count; ++j) {
      rows.keys[i + j] = key + j * key_stride;
      rows.values[i + j] = value + j * value_stride;
    }
    i += run.count;
  }
  return true;
}

// Their scales. Only after find_rows has found the pages to be the cache's.
static void read_scales(const Problem& p, const Sequence& s, int kv_head, int begin, int count, KeyScales& scales) {
  const int64_t stride = p.paged ? 1 : p.kv_heads;
  for (int i = 0; i < count;) {
    const KeyRun run = find_run(p, s, int64_t(begin) + i, count - i);
    const int64_t first =
        p.paged ? (run.page * p.kv_heads + kv_head) * p.page_tokens + run.slot : run.slot * p.kv_heads + kv_head;
    for (int j = 0; j < run.count; ++j) {
      scales.keys[i + j] = p.key_scales[first + j * stride];
      scales.values[i + j] = p.value_scales[first + j * stride];
    }
    i += run.count;
  }
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
