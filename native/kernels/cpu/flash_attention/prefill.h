// prefill.h: attention of a block of query rows, rows in lanes.
//
// Both products have one operand whose rows are lanes, and broadcast the other, so K and V are read as they lie and
// softmax needs no sums across lanes (S = Q Kᵀ is kept as Sᵀ, O as Oᵀ):
//
//             panel of rows →                                      panel of rows →
//           ┌──────────────┐                                     ┌──────────────┐
//   K row   │ 8 × 48 of Sᵀ │  += K[key][d] · Qᵀ[d][rows]    V column │ 8 × 48 of Oᵀ │  += V[key][d] · Wᵀ[key][rows]
//     ↓     └──────────────┘     for d …                     ↓      └──────────────┘     for key …
//
// Tile: kTileRows × kVectors vectors of accumulators; a step loads kVectors vectors and broadcasts kTileRows numbers
// for their product in multiply_adds: 8 × 3 with 32 registers (11 loads for 24), 4 × 3 with AVX2's 16.
//
// Blocks of kBlockKeys = 128 keys: with 48 rows their weights are 24 KB in f32, half of a 48 KB L1, read once for every
// 8 elements of head_dim; Oᵀ is loaded and stored once per block, 48 vectors for 128 · 24 multiply_adds. Qᵀ is read in
// slices of kSliceSteps = 128 for the same reason. A block of up to kPanels panels shares what place_keys and
// place_values convert. L2 per thread at head_dim 256, f32: Qᵀ and Oᵀ 192 KB, K and V 264 KB, scores 24 KB.
//
// FLOPs per visible pair: 4 · head_dim, plus about 16 vector instructions of softmax per kLanes pairs.
#pragma once
#include "kernels/cpu/flash_attention/f32_products.h"
#include "kernels/cpu/flash_attention/lanes.h"
#include "kernels/cpu/flash_attention/partials.h"

namespace lapidary {
namespace {
namespace attention {

static constexpr int kTileRows = kLanes == 8 ? 4 : 8;  // 8 lanes: AVX2 with its 16 registers
static constexpr int kPanelVectors = 3;
static constexpr int kPanels = kLanes == 16 ? 2 : kLanes == 8 ? 4 : 8;  // 96 rows in every ISA
static constexpr int kPanelRows = kPanelVectors * kLanes;
static constexpr int kBlockRows = kPanels * kPanelRows;
static constexpr int kSliceSteps = 128;
static_assert(kBlockKeys % kTileRows == 0);

// Floats of the workspace of one thread.
struct PrefillWorkspace {
  float *queries, *output, *scores, *keys, *values;  // 128-byte aligned
  LAPIDARY_MEMBER_INLINE static int64_t panel_floats(int head_dim) { return int64_t(head_dim) * kPanelRows; }
  LAPIDARY_MEMBER_INLINE static int64_t buffer_floats(int head_dim) { return int64_t(kBlockKeys) * (head_dim + 16); }
  LAPIDARY_MEMBER_INLINE static int64_t floats(int head_dim) {
    return 2 * kPanels * panel_floats(head_dim) + kBlockKeys * kPanelRows + 2 * buffer_floats(head_dim);
  }
  LAPIDARY_MEMBER_INLINE PrefillWorkspace(float* memory, int head_dim) {
    queries = memory;
    output = queries + kPanels * panel_floats(head_dim);
    scores = output + kPanels * panel_floats(head_dim);
    keys = scores + kBlockKeys * kPanelRows;
    values = keys + buffer_floats(head_dim);
  }
};

struct Panel {
  int rows, vectors;
  Interval any, every;  // keys that some row sees; keys that every row sees
  float *queries, *output;
  alignas(64) float references[kPanelRows], sums[kPanelRows];
  alignas(64) int32_t before_low[kPanelRows], high[kPanelRows];  // a row sees key j where before_low < j < high
};

// kTileRows keys' scores over steps [begin, end) of head_dim; begin 0 starts new sums.
template <class Products, int kVectors>
static void score_tile(const float* const* keys, int begin, int end, const float* queries, float* scores) {
  constexpr int kStride = kVectors * kLanes;
  F32 sum[kTileRows][kVectors];
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = begin ? simd::load(scores + r * kStride + v * kLanes) : simd::zero();
  }
  for (int d = begin; d < end; ++d) {
    typename Products::Vector query[kVectors];
    for (int v = 0; v < kVectors; ++v) query[v] = Products::load(queries + int64_t(d) * kStride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const auto key = Products::broadcast(keys[r] + d);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Products::multiply_add(sum[r][v], key, query[v]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kVectors; ++v) simd::store(scores + r * kStride + v * kLanes, sum[r][v]);
  }
}

// kTileRows elements of Oᵀ over all steps of the block.
template <class Products, int kVectors>
static void value_tile(const float* const* values, int element, int steps, const float* weights, float* output) {
  constexpr int kStride = kVectors * kLanes;
  F32 sum[kTileRows][kVectors];
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = simd::load(output + r * kStride + v * kLanes);
  }
  for (int j = 0; j < steps; ++j) {
    const float* value = values[j] + element;
    typename Products::Vector weight[kVectors];
    for (int v = 0; v < kVectors; ++v) weight[v] = Products::load(weights + int64_t(j) * kStride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const auto element_of_key = Products::broadcast(value + r);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Products::multiply_add(sum[r][v], element_of_key, weight[v]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int v = 0; v < kVectors; ++v) simd::store(output + r * kStride + v * kLanes, sum[r][v]);
  }
}

// One panel against the keys [first_key, first_key + count), whose rows begin at `offset` of the block's, a whole
// number of steps.
template <class Products, int kVectors>
static void attend_panel(const Problem& p, const Exponents& e, Panel& panel, int first_key, int count, int offset,
                         const float* const* keys, const float* const* values, const KeyScales& scales, float* scores) {
  constexpr int kStride = kVectors * kLanes;
  const int steps = p.head_dim / Products::kPerStep;
  for (int begin = 0; begin < steps; begin += kSliceSteps) {
    const int end = begin + kSliceSteps < steps ? begin + kSliceSteps : steps;
    for (int j = 0; j < count; j += kTileRows) {
      score_tile<Products, kVectors>(keys + offset + j, begin, end, panel.queries, scores + j * kStride);
    }
  }
  const ScoreBlock<kVectors> block = {scores, count};
  transform_scores<Products>(block, e, p.key_scales ? scales.keys + offset : nullptr);
  mask_scores(block, first_key, panel.every.begin, panel.every.end, panel.before_low, panel.high);
  alignas(64) float factors[kStride];
  if (move_references<Products>(block, e, panel.references, panel.sums, factors)) {
    F32 factor[kVectors];
    for (int v = 0; v < kVectors; ++v) factor[v] = simd::load(factors + v * kLanes);
    for (int d = 0; d < p.head_dim; ++d) {
      for (int v = 0; v < kVectors; ++v) {
        float* o = panel.output + int64_t(d) * kStride + v * kLanes;
        simd::store(o, simd::mul(simd::load(o), factor[v]));
      }
    }
  }
  weigh<Products>(block, e, p.value_scales ? scales.values + offset : nullptr, panel.references, panel.sums);
  const int value_steps = (count + Products::kPerStep - 1) / Products::kPerStep;
  for (int d = 0; d < p.head_dim; d += kTileRows) {
    value_tile<Products, kVectors>(values + offset / Products::kPerStep, d, value_steps, scores,
                                   panel.output + int64_t(d) * kStride);
  }
}

// Which rows a panel holds and what they see. Lanes past its rows see nothing and hold zeros.
template <class Products>
static void open_panel(const Problem& p, const Piece& piece, int first_row, Panel& panel, const Exponents& e,
                       float* staging, Team& team) {
  const int stride = panel.vectors * kLanes;
  panel.any = {0, 0};
  panel.every = {0, INT32_MAX};
  int64_t token = -1;
  Interval seen = {0, 0};
  for (int r = 0; r < stride; ++r) {
    panel.references[r] = e.bounded ? 0.f : kNoReference;
    panel.sums[r] = 0.f;
    panel.before_low[r] = 0;
    panel.high[r] = 0;
    if (r >= panel.rows) continue;
    const int64_t row = piece.row_begin + first_row + r;
    if (row / p.group != token) {
      token = row / p.group;
      seen = visible_keys(p, piece.sequence, int(token), team);
      if (seen.begin < seen.end) {
        const bool first = panel.any.begin >= panel.any.end;
        panel.any.begin = first || seen.begin < panel.any.begin ? seen.begin : panel.any.begin;
        panel.any.end = first || seen.end > panel.any.end ? seen.end : panel.any.end;
      }
      panel.every.begin = seen.begin > panel.every.begin ? seen.begin : panel.every.begin;
      panel.every.end = seen.end < panel.every.end ? seen.end : panel.every.end;
    }
    panel.before_low[r] = seen.begin - 1;
    panel.high[r] = seen.end;
  }
  // Rows to lanes, kLanes at a time.
  const int steps = p.head_dim / Products::kPerStep;
  for (int v = 0; v < panel.vectors; ++v) {
    for (int i = 0; i < kLanes; ++i) {
      const int r = v * kLanes + i;
      if (r < panel.rows) {
        Products::place_query(query_row(p, piece.sequence, piece.kv_head, piece.row_begin + first_row + r),
                              p.query_dtype, p.head_dim, staging + i * steps);
      } else {
        memset(staging + i * steps, 0, size_t(steps) * 4);
      }
    }
    for (int d = 0; d < steps; d += kLanes) {
      const int count = steps - d < kLanes ? steps - d : kLanes;
      F32 tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const float* from = staging + i * steps + d;
        tile[i] = count == kLanes ? simd::load(from) : simd::load_first(from, count);
      }
      transpose(tile);
      for (int i = 0; i < count; ++i) simd::store(panel.queries + int64_t(d + i) * stride + v * kLanes, tile[i]);
    }
  }
  memset(panel.output, 0, size_t(p.head_dim) * size_t(stride) * 4);
}

// Oᵀ to rows: divided by the sums into the output, or as it is into partial rows. `found`: all pages of the piece were.
static void close_panel(const Problem& p, const Piece& piece, int first_row, const Panel& panel, bool found,
                        float* partials, Team& team) {
  const int stride = panel.vectors * kLanes;
  const int64_t partial = partial_stride(p.head_dim);
  for (int v = 0; v < panel.vectors; ++v) {
    const int rows = panel.rows - v * kLanes < kLanes ? panel.rows - v * kLanes : kLanes;
    const F32 sum = simd::load(panel.sums + v * kLanes);
    const auto seen = simd::less(simd::zero(), sum);
    // A row without keys has sum 0 and O 0; a NaN sum stays one.
    const F32 inverse = simd::div(simd::select(seen, simd::set1(1.f), sum), simd::select(seen, sum, simd::set1(1.f)));
    const F32 factor = partials ? simd::set1(1.f) : inverse;
    unsigned char* out[kLanes];
    for (int i = 0; i < rows; ++i) {
      const int64_t row = first_row + v * kLanes + i;
      if (partials) {
        float* to = partials + (partial_row(piece, piece.kv_head) + row) * partial;
        to[0] = panel.references[v * kLanes + i];
        to[1] = panel.sums[v * kLanes + i];
        to[2] = 0.f;
        out[i] = reinterpret_cast<unsigned char*>(to + 16);
      } else {
        out[i] = out_row(p, piece.sequence, piece.kv_head, piece.row_begin + row);
      }
    }
    for (int d = 0; d < p.head_dim; d += kLanes) {
      const int count = p.head_dim - d < kLanes ? p.head_dim - d : kLanes;
      F32 tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = i < count ? simd::mul(simd::load(panel.output + int64_t(d + i) * stride + v * kLanes), factor)
                            : simd::zero();
      }
      transpose(tile);
      for (int i = 0; i < rows; ++i) store_out(out[i], partials ? DType::f32 : p.out_dtype, d, tile[i], count);
    }
    for (int i = 0; !found && i < rows; ++i) {
      const int token = int((piece.row_begin + first_row + v * kLanes + i) / p.group);
      if (!sees_missing_page(p, piece.sequence, token, piece.keys, team)) continue;
      if (partials) {
        reinterpret_cast<float*>(out[i])[2 - 16] = 1.f;
      } else {
        zero_out(out[i], p.out_dtype, p.head_dim);
      }
    }
  }
}

// One piece with more than kDecodeRows rows.
template <class Products>
static void attend_rows(const Problem& p, const Piece& piece, const Exponents& e, const PrefillWorkspace& work,
                        float* partials, Team& team) {
  // As few panels as hold the rows, of nearly equal width.
  const int vectors = (piece.rows + kLanes - 1) / kLanes;
  const int panel_count = (vectors + kPanelVectors - 1) / kPanelVectors;
  Panel panels[kPanels];
  int first_rows[kPanels];
  for (int i = 0, first = 0; i < panel_count; ++i) {
    Panel& panel = panels[i];
    panel.vectors = (vectors + i) / panel_count;
    panel.rows = piece.rows - first < panel.vectors * kLanes ? piece.rows - first : panel.vectors * kLanes;
    panel.queries = work.queries + i * work.panel_floats(p.head_dim);
    panel.output = work.output + i * work.panel_floats(p.head_dim);
    first_rows[i] = first;
    open_panel<Products>(p, piece, first, panel, e, work.keys, team);
    first += panel.rows;
  }
  KeyRows rows;
  KeyScales scales;
  bool found = true;
  const float *keys[kBlockKeys + kTileRows], *values[kBlockKeys];
  for (int first = piece.keys.begin; first < piece.keys.end; first += kBlockKeys) {
    const int count = piece.keys.end - first < kBlockKeys ? piece.keys.end - first : kBlockKeys;
    found &= find_rows(p, piece.sequence, piece.kv_head, first, count, rows);
    if (p.key_scales) read_scales(p, piece.sequence, piece.kv_head, first, count, scales);
    Products::place_keys(rows, p.key_dtype, count, p.head_dim, work.keys, keys);
    for (int i = 0; i < kTileRows; ++i)
      keys[count + i] = keys[count - 1];  // a last tile's rows past the keys: computed, not used
    Products::place_values(rows, p.key_dtype, count, p.head_dim, work.values, values);
    for (int i = 0; i < panel_count; ++i) {
      Panel& panel = panels[i];
      int begin = panel.any.begin > first ? panel.any.begin : first;
      const int end = panel.any.end < first + count ? panel.any.end : first + count;
      if (begin >= end) continue;
      begin -= (begin - first) % Products::kPerStep;
      const auto attend = panel.vectors == 3   ? attend_panel<Products, 3>
                          : panel.vectors == 2 ? attend_panel<Products, 2>
                                               : attend_panel<Products, 1>;
      attend(p, e, panel, begin, end - begin, begin - first, keys, values, scales, work.scores);
    }
  }
  for (int i = 0; i < panel_count; ++i) {
    close_panel(p, piece, first_rows[i], panels[i], found, piece.chunks > 1 ? partials : nullptr, team);
  }
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
