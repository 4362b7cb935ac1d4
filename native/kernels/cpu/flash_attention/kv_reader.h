// kv_reader.h: where the rows of a run of keys and values lie, whatever holds them: plain tensors, pages, a ring of pages.
#pragma once
#include "kernels/cpu/flash_attention/visible_keys.h"

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

LAPIDARY_INLINE bool page_exists(const Problem& p, int64_t page) { return page >= 0 && page < p.pages; }

// Stands for keys and values that are nowhere.
alignas(64) static constexpr unsigned char kZeroRow[4 * kAttentionMaxHeadDim] = {};

// The rows of logical keys [begin, begin + count). False where a page number is not one of the cache's: its rows are
// zeros then, so that others go on as if nothing were, and close_row() withdraws those that see them.
static bool find_rows(const Problem& p, const Sequence& s, int kv_head, int begin, int count, KeyRows& rows) {
  const TensorView& k = p.call->in[In::k];
  const TensorView& v = p.call->in[In::v];
  const int64_t bytes = element_bytes(p.key_dtype);
  const int slots = p.paged ? 2 : 0;  // the axis that counts keys
  const int64_t key_stride = k.strides[slots] * bytes, value_stride = v.strides[slots] * bytes;
  bool found = true;
  for (int i = 0; i < count;) {
    const KeyRun run = find_run(p, s, int64_t(begin) + i, count - i);
    if (p.paged && !page_exists(p, run.page)) {
      for (int j = 0; j < run.count; ++j) rows.keys[i + j] = rows.values[i + j] = kZeroRow;
      i += run.count;
      found = false;
      continue;
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
  return found;
}

// Whether `token` sees a key of `keys` that is on no page of the cache, which is reported. For the end of pieces whose
// rows were not all found.
static bool sees_missing_page(const Problem& p, const Sequence& s, int token, Interval keys, Team& team) {
  const Interval seen = visible_keys(p, s, token, team);
  const int begin = seen.begin > keys.begin ? seen.begin : keys.begin;
  const int end = seen.end < keys.end ? seen.end : keys.end;
  for (int64_t key = begin; key < end;) {
    const KeyRun run = find_run(p, s, key, int(end - key));
    if (!page_exists(p, run.page)) {
      team_fail(team, Code::kIndexOutOfRange, "flash_attention: pageTable: sequence %lld names page %lld", s.index,
                run.page);
      return true;
    }
    key += run.count;
  }
  return false;
}

// The scales of logical keys [begin, begin + count).
static void read_scales(const Problem& p, const Sequence& s, int kv_head, int begin, int count, KeyScales& scales) {
  const int64_t stride = p.paged ? 1 : p.kv_heads;
  for (int i = 0; i < count;) {
    const KeyRun run = find_run(p, s, int64_t(begin) + i, count - i);
    const bool exists = !p.paged || page_exists(p, run.page);
    const int64_t first =
        p.paged ? (run.page * p.kv_heads + kv_head) * p.page_tokens + run.slot : run.slot * p.kv_heads + kv_head;
    for (int j = 0; j < run.count; ++j) {
      scales.keys[i + j] = exists ? p.key_scales[first + j * stride] : 0.f;
      scales.values[i + j] = exists ? p.value_scales[first + j * stride] : 0.f;
    }
    i += run.count;
  }
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
