// decode.h: attention of at most kDecodeRows query rows of one kv head over a chunk of keys, lanes along head_dim.
//
// The cache is read once, front to back, and that is all that counts: 4 · head_dim · rows operations per 4 · head_dim
// bytes of bf16. In blocks of kDecodeKeys keys:
//   scores   f32_decode.h, or bf16_decode.h
//   softmax  lanes along keys (online_softmax.h has the algorithm and its constants)
//   values   as the scores
// Beside every row the one some 8 KB further on is prefetched: the block's values follow its keys, and the next block's
// keys its values. The hardware's prefetchers stop at every page of a cache and between the rows of one head in plain
// tensors of several.
#pragma once
#include "kernels/cpu/flash_attention/f32_decode.h"
#include "kernels/cpu/flash_attention/partials.h"

namespace lapidary {
namespace {
namespace attention {

// Per thread: rows of q and O, and scores of a block, for kDecodeRows rows of all the piece's heads.
struct DecodeWorkspace {
  float *queries, *output, *scores;
  LAPIDARY_MEMBER_INLINE static int64_t floats(int head_dim) {
    return int64_t(kDecodeRows) * (2 * padded_dim(head_dim) + kDecodeKeys);
  }
  LAPIDARY_MEMBER_INLINE DecodeWorkspace(float* memory, int head_dim) {
    queries = memory;
    output = queries + kDecodeRows * padded_dim(head_dim);
    scores = output + kDecodeRows * padded_dim(head_dim);
  }
};

// Rows between a row and the one that is prefetched beside it: 8 KB. That is what 40 GB/s draw in 200 ns, and a
// fraction of L1, which the lines must not leave before they are used (measured on Zen 5: 4 … 12 KB are alike, 32 KB
// into L2 lose a fifth).
LAPIDARY_INLINE int prefetch_distance(int row_bytes) {
  const int rows = 8192 / row_bytes;
  return rows < kDecodeKeys ? rows : kDecodeKeys;
}

struct DecodeRow {
  Interval seen;
  float reference, sum;
};

// Softmax of one row of a block: scores to weights, the row's reference and sum, and O where the reference moves. Keys
// past `count`, up to `padded` and then to a whole vector, get weight 0.
template <class Products>
static void weigh_row(const Exponents& e, int first_key, int count, int padded, const KeyScales* scales, int padded_dim,
                      float* scores, DecodeRow& row, float* output) {
  const F32 factor = simd::set1(e.negated ? -e.factor : e.factor), cap_factor = simd::set1(e.cap_factor);
  const I32 before_low = simd::set1_i32(row.seen.begin - 1);
  const I32 end = simd::set1_i32(row.seen.end < first_key + count ? row.seen.end : first_key + count);
  F32 largest = simd::set1(kMinusInfinity);
  for (int j = 0; j < padded; j += kLanes) {
    F32 s = simd::load(scores + j);
    if (scales) s = simd::mul(s, simd::load(scales->keys + j));
    s = e.capped ? simd::mul(Products::tanh(simd::mul(s, cap_factor)), simd::set1(e.cap)) : simd::mul(s, factor);
    const I32 key = simd::add(simd::set1_i32(first_key + j), simd::iota());
    s = simd::select(simd::mask_and(simd::less(before_low, key), simd::less(key, end)), s, simd::set1(kMinusInfinity));
    simd::store(scores + j, s);
    largest = simd::max(s, largest);
  }
  const float block_largest = simd::reduce_max(largest);
  if (!e.bounded && block_largest > row.reference + kSlack) {
    const F32 correction = Products::exponential(simd::set1(row.reference - block_largest));
    for (int d = 0; d < padded_dim; d += kLanes) simd::store(output + d, simd::mul(simd::load(output + d), correction));
    alignas(64) float factors[kLanes];
    simd::store(factors, correction);
    row.sum *= factors[0];
    row.reference = block_largest;
  }
  const F32 reference = simd::set1(row.reference);
  F32 sum = simd::zero();
  for (int j = 0; j < padded; j += kLanes) {
    F32 weight = Products::exponential(simd::sub(simd::load(scores + j), reference));
    sum = simd::add(sum, weight);
    if (scales) weight = simd::mul(weight, simd::load(scales->values + j));
    simd::store(scores + j, weight);
  }
  row.sum += simd::reduce_add(sum);
}

// A block of keys of a piece's heads in the order of reading: in pages head by head, in plain tensors, where heads
// alternate, a few keys of each head in turn. A visit is what is read of one head at a time.
struct DecodeBlock {
  int count;   // keys; 0: none
  int padded;  // to whole groups; the last key stands in, with weight 0
  int visit;   // keys per visit
  int rows;    // of K in all: heads · padded
};

// False where a page is missing.
static bool order_rows(const Problem& p, const Piece& piece, int first, DecodeBlock& block, const unsigned char** keys,
                       const unsigned char** values) {
  const int rest = piece.keys.end - first;
  block.count = rest < 0 ? 0 : rest < kDecodeKeys ? rest : kDecodeKeys;
  block.padded = (block.count + kGroupKeys - 1) / kGroupKeys * kGroupKeys;
  block.visit = p.paged ? block.padded : kGroupKeys;
  block.rows = piece.heads * block.padded;
  KeyRows rows;
  const bool found = find_rows(p, piece.sequence, piece.kv_head, first, block.count, rows);
  for (int j = block.count; j < block.padded; ++j) {
    rows.keys[j] = rows.keys[block.count - 1];
    rows.values[j] = rows.values[block.count - 1];
  }
  const int64_t key_head = head_bytes(p, In::k), value_head = head_bytes(p, In::v);
  for (int j = 0; j < block.padded; j += block.visit) {
    for (int head = 0; head < piece.heads; ++head, keys += block.visit, values += block.visit) {
      for (int i = 0; i < block.visit; ++i) {
        const bool missing = rows.keys[j + i] == kZeroRow;  // for every head
        keys[i] = missing ? kZeroRow : rows.keys[j + i] + head * key_head;
        values[i] = missing ? kZeroRow : rows.values[j + i] + head * value_head;
      }
    }
  }
  return found;
}

// One piece of at most kDecodeRows rows.
template <class Products, class Decode>
static void decode(const Problem& p, const Piece& piece, const Exponents& e, const DecodeWorkspace& work,
                   float* partials, Team& team) {
  static constexpr int kMostRows = 4 * kDecodeKeys;  // decode_heads gives at most 4
  const int stride = padded_dim(p.head_dim);
  const int all_rows = piece.heads * piece.rows;  // row r of head h is h · rows + r
  const int distance = prefetch_distance(p.head_dim * int(element_bytes(p.key_dtype)));

  // K of the block, V of the block, K of the next one: beside every row the one `distance` further on is prefetched.
  const unsigned char *order[3 * kMostRows + kDecodeKeys], *next_values[kMostRows];
  DecodeBlock block, next;
  bool found = order_rows(p, piece, piece.keys.begin, block, order, next_values);

  DecodeRow state[kDecodeRows];
  memset(work.output, 0, size_t(all_rows) * size_t(stride) * 4);
  for (int head = 0; head < piece.heads; ++head) {
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t row = piece.row_begin + r;
      const int at = head * piece.rows + r;
      state[at] = {visible_keys(p, piece.sequence, int(row / p.group), team), e.bounded ? 0.f : kNoReference, 0.f};
      Decode::place_query(query_row(p, piece.sequence, piece.kv_head + head, row), p.query_dtype, p.key_dtype,
                          piece.rows, p.head_dim, work.queries + at * stride);
    }
  }

  for (int first = piece.keys.begin; block.count > 0; first += kDecodeKeys) {
    const int rows = block.rows;
    memcpy(order + rows, next_values, size_t(rows) * sizeof *order);
    found &= order_rows(p, piece, first + kDecodeKeys, next, order + 2 * rows, next_values);
    for (int i = next.rows; i < distance; ++i) order[2 * rows + i] = order[2 * rows - 1];  // nothing left to ask for

    const auto visits = [&](int begin, auto&& visit) {
      for (int at = 0, j = 0; at < rows; at += block.visit) {
        const int head = at / block.visit % piece.heads;
        visit(order + begin + at, order + begin + at + distance, head * piece.rows * stride,
              head * piece.rows * kDecodeKeys + j);
        if (head + 1 == piece.heads) j += block.visit;
      }
    };
    visits(0, [&](const unsigned char** keys, const unsigned char** ahead, int row, int score) {
      Decode::scores(p.key_dtype, piece.rows, keys, ahead, block.visit, work.queries + row, p.head_dim,
                     work.scores + score);
    });
    for (int head = 0; head < piece.heads; ++head) {
      KeyScales scales;
      if (p.key_scales) {
        read_scales(p, piece.sequence, piece.kv_head + head, first, block.count, scales);
        // Weights past the keys are 0, and stay so only times a number.
        for (int j = block.count; j < kDecodeKeys; ++j) scales.keys[j] = scales.values[j] = 0.f;
      }
      for (int r = 0; r < piece.rows; ++r) {
        const int at = head * piece.rows + r;
        weigh_row<Products>(e, first, block.count, block.padded, p.key_scales ? &scales : nullptr, stride,
                            work.scores + at * kDecodeKeys, state[at], work.output + at * stride);
      }
    }
    visits(rows, [&](const unsigned char** values, const unsigned char** ahead, int row, int score) {
      Decode::values(p.key_dtype, piece.rows, values, ahead, block.visit, work.scores + score, p.head_dim,
                     work.output + row);
    });
    memmove(order, order + 2 * rows, size_t(next.rows) * sizeof *order);
    block = next;
  }
  const bool in_pairs = Decode::in_pairs(p.key_dtype, piece.rows);
  for (int at = 0; at < all_rows; ++at) {
    float* o = work.output + at * stride;
    const int kv_head = piece.kv_head + at / piece.rows, r = at % piece.rows;
    for (int d = 0; in_pairs && d < p.head_dim; d += kPairLanes) {
      F32 even = simd::load(o + d), odd = simd::load(o + d + kLanes);
      interleave_lanes(even, odd);
      simd::store(o + d, even);
      simd::store(o + d + kLanes, odd);
    }
    const bool missing =
        !found && sees_missing_page(p, piece.sequence, int((piece.row_begin + r) / p.group), piece.keys, team);
    if (piece.chunks > 1) {
      float* to = partials + (partial_row(piece, kv_head) + r) * partial_stride(p.head_dim);
      to[0] = state[at].reference;
      to[1] = state[at].sum;
      to[2] = missing ? 1.f : 0.f;
      memcpy(to + 16, o, size_t(p.head_dim) * 4);
      continue;
    }
    unsigned char* out = out_row(p, piece.sequence, kv_head, piece.row_begin + r);
    if (missing) {
      zero_out(out, p.out_dtype, p.head_dim);
      continue;
    }
    // A row without keys has sum 0 and O 0; a NaN sum stays one.
    const F32 inverse = simd::set1(state[at].sum == 0.f ? 0.f : 1.f / state[at].sum);
    for (int d = 0; d < p.head_dim; d += kLanes) {
      const int rest = p.head_dim - d;
      store_out(out, p.out_dtype, d, simd::mul(simd::load(o + d), inverse), rest < kLanes ? rest : kLanes);
    }
  }
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
