// decode.h: attention of at most kDecodeRows query rows of one kv head over a chunk of keys, lanes along head_dim.
//
// The cache is read once, front to back, and that is all that counts: 4 · head_dim · rows operations per 4 · head_dim
// bytes of bf16. In blocks of kDecodeKeys keys:
//   scores   kKeysAtOnce keys × rows dot products at a time, summed across lanes at the end of each row
//   softmax  lanes along keys (online_softmax.h has the algorithm and its constants)
//   values   O[rows][head_dim] in L1 += weight · V row, several keys per visit of O
// Beside every row the one some 8 KB further on is prefetched: the block's values follow its keys, and the next block's
// keys its values. The hardware's prefetchers stop at every page of a cache and between the rows of one head in plain
// tensors of several.
#pragma once
#include "kernels/cpu/flash_attention/f32_products.h"
#include "kernels/cpu/flash_attention/lanes.h"
#include "kernels/cpu/flash_attention/partials.h"

namespace lapidary {
namespace {
namespace attention {

static constexpr int kDecodeKeys = 64;
static constexpr int kKeysAtOnce = 4;                    // what store_sums takes
static constexpr int kGroupKeys = 8;                     // what a visit has at least: two of kKeysAtOnce
static constexpr int kRowsAtOnce = kLanes == 8 ? 2 : 4;  // 4 keys · 4 rows of sums in 32 registers, 4 · 2 in AVX2's 16
static_assert(kDecodeKeys <= kBlockKeys && kDecodeKeys % kLanes == 0 && kDecodeKeys % kGroupKeys == 0);

// Rows are visited two vectors at a time, and padded with zeros to that.
static constexpr int kPairLanes = 2 * kLanes;
LAPIDARY_INLINE int padded_dim(int head_dim) { return (head_dim + kPairLanes - 1) / kPairLanes * kPairLanes; }

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

// Rows that are to come, in the order in which they lie in memory: asked for a line at a time, beside the arithmetic on
// as many. A burst of them fills the miss buffers of L1, and loads that would hit wait behind it. In order: a page's lines
// are read at 20 GB/s where those of four rows alternate, at 29 one row after the other (one thread of a Zen 5). They are
// read once, so they need not enter L2: paged caches decode a tenth faster than with prefetches into all levels.
class Ahead {
 public:
  LAPIDARY_MEMBER_INLINE Ahead(const unsigned char* const* rows, int row_bytes) : rows_(rows), row_bytes_(row_bytes) {}
  // Where the next `bytes` of them begin, no more than are left of a row.
  LAPIDARY_MEMBER_INLINE const unsigned char* take(int bytes) {
    const unsigned char* at = *rows_ + offset_;
    offset_ += bytes;
    if (offset_ >= row_bytes_) {
      offset_ = 0;
      ++rows_;
    }
    return at;
  }

 private:
  const unsigned char* const* rows_;
  const int row_bytes_;
  int offset_ = 0;
};

// Asks for kBytes of a row from byte `at` on, a multiple of kBytes: each line once.
template <int kBytes>
LAPIDARY_INLINE void ask_for(const unsigned char* row, int at) {
  if (kBytes < 64 && at % 64 != 0) return;
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(row + at + i, 0, 0);
}

// Rows between a row and the one that is prefetched beside it: 8 KB. That is what 40 GB/s draw in 200 ns, and a
// fraction of L1, which the lines must not leave before they are used (measured on Zen 5: 4 … 12 KB are alike, 32 KB
// into L2 lose a fifth).
LAPIDARY_INLINE int prefetch_distance(int row_bytes) {
  const int rows = 8192 / row_bytes;
  return rows < kDecodeKeys ? rows : kDecodeKeys;
}

template <DType kType>
inline constexpr int kElementBytes = kType == DType::f32  ? 4
                                     : kType == DType::i8 ? 1
                                                          : 2;

// kPairLanes elements as two vectors: bf16 as its even and its odd elements, other types in order. q and O have the same
// order.
template <DType kType>
LAPIDARY_INLINE void load_two(const unsigned char* p, F32& a, F32& b) {
  if constexpr (kType == DType::bf16) {
    load_bf16_pairs(p, a, b);
  } else {
    a = widen<kType>(p);
    b = widen<kType>(p + kLanes * kElementBytes<kType>);
  }
}
// The same of the last `rest` elements of a row, then zeros.
template <DType kType>
LAPIDARY_INLINE void load_rest(const unsigned char* p, int rest, F32& a, F32& b) {
  alignas(64) unsigned char padded[kPairLanes * kElementBytes<kType>] = {};
  memcpy(padded, p, size_t(rest) * kElementBytes<kType>);
  load_two<kType>(padded, a, b);
}

// scores[r][j] = q[r] · k[j] for `count` keys, a multiple of kGroupKeys. One key after the other, as they lie in memory:
// q comes from L1 for each.
template <DType kType, int kRows>
static void decode_scores(const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                          const float* queries, int head_dim, float* scores) {
  constexpr int kBytes = kElementBytes<kType>;
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * kBytes);
  for (int j = 0; j < count; j += kKeysAtOnce) {
    F32 sum[kKeysAtOnce][kRows];
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const unsigned char* const key = keys[j + i];
      const unsigned char* const next = prefetch.take(head_dim * kBytes);
      F32 dot[2][kRows];
      for (int r = 0; r < kRows; ++r) dot[0][r] = dot[1][r] = simd::zero();
      const auto add = [&](F32 a, F32 b, int d) {
        for (int r = 0; r < kRows; ++r) dot[0][r] = simd::fma(a, simd::load(queries + r * stride + d), dot[0][r]);
        for (int r = 0; r < kRows; ++r) {
          dot[1][r] = simd::fma(b, simd::load(queries + r * stride + d + kLanes), dot[1][r]);
        }
      };
      F32 a, b;
      int d = 0;
      for (; d + kPairLanes <= head_dim; d += kPairLanes) {
        load_two<kType>(key + d * kBytes, a, b);
        ask_for<kPairLanes * kBytes>(next, d * kBytes);
        add(a, b, d);
      }
      if (d < head_dim) {
        load_rest<kType>(key + d * kBytes, head_dim - d, a, b);
        ask_for<kPairLanes * kBytes>(next, d * kBytes);
        add(a, b, d);
      }
      for (int r = 0; r < kRows; ++r) sum[i][r] = simd::add(dot[0][r], dot[1][r]);
    }
    for (int r = 0; r < kRows; ++r)
      store_sums(scores + r * kDecodeKeys + j, sum[0][r], sum[1][r], sum[2][r], sum[3][r]);
  }
}

// Visits of a row, two vectors each, whose sums for all query rows stay in registers: half of what there are.
static constexpr int kMostVisits = kLanes == 8 ? 2 : 8;
template <int kRows>
inline constexpr int kVisits = kRows > kMostVisits ? 1 : kMostVisits / kRows;

// output[r] += Σ_j weights[r][j] · v[j] over the elements [d, d + visits · kPairLanes) of kGroupKeys rows; of one visit,
// `rest` may be less than kPairLanes.
template <DType kType, int kRows, int kVisitCount, bool kRest>
LAPIDARY_INLINE void add_values(const unsigned char* const* values, const float* weights, int d, int rest, int stride,
                                Ahead& prefetch, float* output) {
  constexpr int kVisitBytes = kPairLanes * kElementBytes<kType>;
  F32 sum[kVisitCount][2][kRows];
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      sum[c][0][r] = simd::load(output + r * stride + d + c * kPairLanes);
      sum[c][1][r] = simd::load(output + r * stride + d + c * kPairLanes + kLanes);
    }
  }
  for (int i = 0; i < kGroupKeys; ++i) {
    const unsigned char* const value = values[i] + d * kElementBytes<kType>;
    const unsigned char* const next = prefetch.take(kVisitCount * kVisitBytes);
    F32 weight[kRows];
    for (int r = 0; r < kRows; ++r) weight[r] = simd::set1(weights[r * kDecodeKeys + i]);
    for (int c = 0; c < kVisitCount; ++c) {
      F32 a, b;
      if constexpr (kRest) {
        load_rest<kType>(value, rest, a, b);
      } else {
        load_two<kType>(value + c * kVisitBytes, a, b);
      }
      ask_for<kVisitBytes>(next, c * kVisitBytes);
      for (int r = 0; r < kRows; ++r) sum[c][0][r] = simd::fma(weight[r], a, sum[c][0][r]);
      for (int r = 0; r < kRows; ++r) sum[c][1][r] = simd::fma(weight[r], b, sum[c][1][r]);
    }
  }
  for (int c = 0; c < kVisitCount; ++c) {
    for (int r = 0; r < kRows; ++r) {
      simd::store(output + r * stride + d + c * kPairLanes, sum[c][0][r]);
      simd::store(output + r * stride + d + c * kPairLanes + kLanes, sum[c][1][r]);
    }
  }
}

// output[r] += Σ_j weights[r][j] · v[j] for `count` keys, a multiple of kGroupKeys. Of each group a part of every row
// in turn, so that lines are read nearly in the order in which they lie and O is loaded and stored once for eight keys.
template <DType kType, int kRows>
static void decode_values(const unsigned char* const* values, const unsigned char* const* ahead, int count,
                          const float* weights, int head_dim, float* output) {
  constexpr int kPart = kVisits<kRows> * kPairLanes;
  const int stride = padded_dim(head_dim);
  Ahead prefetch(ahead, head_dim * kElementBytes<kType>);
  for (int j = 0; j < count; j += kGroupKeys) {
    int d = 0;
    for (; d + kPart <= head_dim; d += kPart)
      add_values<kType, kRows, kVisits<kRows>, false>(values + j, weights + j, d, 0, stride, prefetch, output);
    for (; d + kPairLanes <= head_dim; d += kPairLanes)
      add_values<kType, kRows, 1, false>(values + j, weights + j, d, 0, stride, prefetch, output);
    if (d < head_dim)
      add_values<kType, kRows, 1, true>(values + j, weights + j, d, head_dim - d, stride, prefetch, output);
  }
}

// Any number of rows, kRowsAtOnce at a time; the first visit brings the cache lines that are to come, later ones ask for
// what L1 has.
template <DType kType>
static void decode_scores_of(int rows, const unsigned char* const* keys, const unsigned char* const* ahead, int count,
                             const float* queries, int head_dim, float* scores) {
  for (int r = 0; r < rows; r += kRowsAtOnce, ahead = keys) {
    const int now = rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce;
    const auto run = now == 1   ? decode_scores<kType, 1>
                     : now == 2 ? decode_scores<kType, 2>
                     : now == 3 ? decode_scores<kType, 3>
                                : decode_scores<kType, 4>;
    run(keys, ahead, count, queries + r * padded_dim(head_dim), head_dim, scores + r * kDecodeKeys);
  }
}
template <DType kType>
static void decode_values_of(int rows, const unsigned char* const* values, const unsigned char* const* ahead, int count,
                             const float* weights, int head_dim, float* output) {
  for (int r = 0; r < rows; r += kRowsAtOnce, ahead = values) {
    const int now = rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce;
    const auto run = now == 1   ? decode_values<kType, 1>
                     : now == 2 ? decode_values<kType, 2>
                     : now == 3 ? decode_values<kType, 3>
                                : decode_values<kType, 4>;
    run(values, ahead, count, weights + r * kDecodeKeys, head_dim, output + r * padded_dim(head_dim));
  }
}

// How a piece's rows meet a block of keys, in f32 arithmetic whatever the dtype. An ISA may bring its own.
struct F32Decode {
  // Whether q and O are kept as even and odd elements.
  LAPIDARY_MEMBER_INLINE static bool in_pairs(DType key_dtype, int) { return key_dtype == DType::bf16; }

  static void place_query(const unsigned char* row, DType dtype, DType key_dtype, int, int head_dim, float* to) {
    for (int d = 0; d < head_dim; d += kPairLanes) {
      const int count = head_dim - d < kPairLanes ? head_dim - d : kPairLanes;
      if (dtype == DType::bf16 && key_dtype == DType::bf16) {
        F32 a, b;
        load_rest<DType::bf16>(row + d * 2, count, a, b);
        simd::store(to + d, a);
        simd::store(to + d + kLanes, b);
        continue;
      }
      for (int i = 0; i < kPairLanes; ++i) {
        float x = 0.f;
        if (i < count && dtype == DType::f32) memcpy(&x, row + (d + i) * 4, 4);
        if (i < count && dtype == DType::bf16) {
          uint16_t bits;
          memcpy(&bits, row + (d + i) * 2, 2);
          x = simd::bf16_to_f32(bits);
        }
        to[d + (key_dtype == DType::bf16 ? i / 2 + (i & 1) * kLanes : i)] = x;
      }
    }
  }

  LAPIDARY_MEMBER_INLINE static void scores(DType dtype, int rows, const unsigned char* const* keys,
                                            const unsigned char* const* ahead, int count, const float* queries,
                                            int head_dim, float* scores) {
    switch (dtype) {
      case DType::f32: return decode_scores_of<DType::f32>(rows, keys, ahead, count, queries, head_dim, scores);
      case DType::bf16: return decode_scores_of<DType::bf16>(rows, keys, ahead, count, queries, head_dim, scores);
      case DType::f16: return decode_scores_of<DType::f16>(rows, keys, ahead, count, queries, head_dim, scores);
      default: return decode_scores_of<DType::i8>(rows, keys, ahead, count, queries, head_dim, scores);
    }
  }
  LAPIDARY_MEMBER_INLINE static void values(DType dtype, int rows, const unsigned char* const* values,
                                            const unsigned char* const* ahead, int count, const float* weights,
                                            int head_dim, float* output) {
    switch (dtype) {
      case DType::f32: return decode_values_of<DType::f32>(rows, values, ahead, count, weights, head_dim, output);
      case DType::bf16: return decode_values_of<DType::bf16>(rows, values, ahead, count, weights, head_dim, output);
      case DType::f16: return decode_values_of<DType::f16>(rows, values, ahead, count, weights, head_dim, output);
      default: return decode_values_of<DType::i8>(rows, values, ahead, count, weights, head_dim, output);
    }
  }
};

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
