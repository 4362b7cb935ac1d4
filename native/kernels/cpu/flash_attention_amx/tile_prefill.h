// tile_prefill.h: attention of a block of query rows on tiles. Rows are lanes, as in flash_attention/prefill.h, so
// masks, soft caps and softmax are the same code; the two products are tiles:
//
//        32 rows of Q →                                      32 rows →
//      ┌───────┬───────┐                                   ┌───────┬───────┐
//   K  │ tmm0  │ tmm1  │  Sᵀ = K · Qᵀ, A tiles of K     Vᵀ │ tmm0  │ tmm1  │  Oᵀ += Vᵀ · Pᵀ, A tiles of Vᵀ
//   ↓  ├───────┼───────┤  as it lies, B tiles of Qᵀ     ↓  ├───────┼───────┤  (tile_keys.h), B tiles of Pᵀ: weights
//   32 │ tmm2  │ tmm3  │  (pairs of d, made once)       32 │ tmm2  │ tmm3  │  of pairs of keys, where Sᵀ was
//      └───────┴───────┘                                of d └───────┴───────┘
//
// Blocks: up to 512 rows (of all heads of a group) share a block of 512 keys. Per thread at head_dim 256: Qᵀ 256 KB, Oᵀ
// 512 KB, K 256 KB (its own lines), Vᵀ 256 KB, Sᵀ of three panels 192 KB: 1.5 of 2 MB of L2. Blocks of keys begin at
// multiples of their length, so that a row's result does not depend on the rows it shares a block with.
//
// Per row and key at head_dim 256: 1 cycle of products, half for each; beside them 0.5 of softmax, 1.1 or more with a
// soft cap (softmax_job.h); 0.1 of loading and storing Oᵀ, 0.1 of transposing V at 512 rows: 80 % of the tiles' rate as
// an estimate (docs/amx.md).
#pragma once
#include "kernels/cpu/flash_attention_amx/softmax_job.h"
#include "kernels/cpu/flash_attention_amx/tile_keys.h"

namespace lapidary {
namespace {
namespace attention_amx {

static constexpr int kMostTileRows = 512;
static constexpr int kMostTilePanels = kMostTileRows / kPairRows;

// Rows and keys per block: constants of the head_dim, so that results do not depend on anything else.
LAPIDARY_INLINE int tile_block_rows(int head_dim) { return head_dim <= 256 ? kMostTileRows : kMostTileRows / 2; }
LAPIDARY_INLINE int tile_block_keys(int head_dim) { return head_dim <= 256 ? kMostTileKeys : kMostTileKeys / 2; }

// Memory of one thread, in floats; every part a whole number of cache lines.
struct TileWorkspace {
  float *queries, *output, *scores[3];
  unsigned char *keys, *values;
  LAPIDARY_INLINE int64_t query_floats(int head_dim) { return int64_t(padded(head_dim)) / 2 * kPairRows; }
  LAPIDARY_INLINE int64_t output_floats(int head_dim) { return int64_t(padded(head_dim)) * kPairRows; }
  LAPIDARY_INLINE int64_t floats(int head_dim) {
    const int64_t panels = tile_block_rows(head_dim) / kPairRows, keys = tile_block_keys(head_dim);
    return panels * (query_floats(head_dim) + output_floats(head_dim)) + 3 * keys * kPairRows + keys * padded(head_dim);
  }
  LAPIDARY_MEMBER_INLINE TileWorkspace(float* memory, int head_dim) {
    const int64_t panels = tile_block_rows(head_dim) / kPairRows, block_keys = tile_block_keys(head_dim);
    queries = memory;
    output = queries + panels * query_floats(head_dim);
    scores[0] = output + panels * output_floats(head_dim);
    for (int i = 1; i < 3; ++i) scores[i] = scores[i - 1] + block_keys * kPairRows;
    keys = reinterpret_cast<unsigned char*>(scores[2] + block_keys * kPairRows);
    values = keys + block_keys * padded(head_dim) * 2;
  }
};

// Sᵀ of 32 keys against a panel's 32 rows.
static void score_tiles(Tiles& tiles, const KeyTile& low, const KeyTile& high, const float* queries, int steps,
                        float* scores, SoftmaxJob& job) {
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  for (int step = 0; step < steps; ++step) {
    const float* const query = queries + int64_t(step) * kTileHeight * kPairRows;
    tiles.load<4>(low.data + step * low.step_stride, size_t(low.row_stride));
    tiles.load<6>(query, kPairStride);
    tiles.dp_bf16<0, 4, 6>();
    tiles.load<7>(query + kLanes, kPairStride);
    tiles.dp_bf16<1, 4, 7>();
    tiles.load<5>(high.data + step * high.step_stride, size_t(high.row_stride));
    tiles.dp_bf16<2, 5, 6>();
    tiles.dp_bf16<3, 5, 7>();
    job.advance();
  }
  tiles.store<0>(scores, kPairStride);
  tiles.store<1>(scores + kLanes, kPairStride);
  tiles.store<2>(scores + kTileHeight * kPairRows, kPairStride);
  tiles.store<3>(scores + kTileHeight * kPairRows + kLanes, kPairStride);
  tiles.expire();
}

// 16 · kHalves elements of Oᵀ over `steps` groups of 32 keys. `values`: the elements' tiles of the first group; weights: Pᵀ,
// every other row.
template <int kHalves>
static void value_tiles(Tiles& tiles, const unsigned char* values, int64_t step_bytes, int steps, const float* weights,
                        float* output, SoftmaxJob& job) {
  tiles.load<0>(output, kPairStride);
  tiles.load<1>(output + kLanes, kPairStride);
  if (kHalves == 2) tiles.load<2>(output + kTileHeight * kPairRows, kPairStride);
  if (kHalves == 2) tiles.load<3>(output + kTileHeight * kPairRows + kLanes, kPairStride);
  for (int step = 0; step < steps; ++step) {
    const float* const weight = weights + int64_t(step) * kGroupKeys * kPairRows;
    tiles.load<4>(values + step * step_bytes, kTileRowBytes);
    tiles.load<6>(weight, 2 * kPairStride);
    tiles.dp_bf16<0, 4, 6>();
    tiles.load<7>(weight + kLanes, 2 * kPairStride);
    tiles.dp_bf16<1, 4, 7>();
    if constexpr (kHalves == 2) {
      tiles.load<5>(values + step * step_bytes + kTileBytes, kTileRowBytes);
      tiles.dp_bf16<2, 5, 6>();
      tiles.dp_bf16<3, 5, 7>();
    }
    job.advance();
  }
  tiles.store<0>(output, kPairStride);
  tiles.store<1>(output + kLanes, kPairStride);
  if (kHalves == 2) tiles.store<2>(output + kTileHeight * kPairRows, kPairStride);
  if (kHalves == 2) tiles.store<3>(output + kTileHeight * kPairRows + kLanes, kPairStride);
  tiles.expire();
}

// All panels against a block of keys, in three stages that overlap:  scores of panel i + 1, softmax of panel i, values
// of panel i − 1.
static void attend_block(Tiles& tiles, const Problem& p, const Exponents& e, Panel* panels, int panel_count,
                         const TileBlock& block, const TileWorkspace& work) {
  const int dim = padded(p.head_dim), dim_steps = dim / kStepDim;
  const int64_t group_bytes = int64_t(dim) * kGroupKeys * 2;  // of Vᵀ
  PanelKeys stages[3];  // being scored, weighed, multiplied with values; without groups: none
  for (auto& stage : stages) stage = {};
  for (int index = 0, turn = 0; index < panel_count || stages[0].groups || stages[1].groups;) {
    stages[2] = stages[1];
    stages[1] = stages[0];
    stages[0] = {};
    for (; index < panel_count && stages[0].groups == 0; ++index) {
      Panel& panel = panels[index];
      int begin = panel.any.begin > block.begin ? panel.any.begin : block.begin;
      const int end = panel.any.end < block.end ? panel.any.end : block.end;
      if (begin >= end) continue;
      begin = begin / kGroupKeys * kGroupKeys;
      stages[0] = {&panel, begin, end - begin, (end - begin + kGroupKeys - 1) / kGroupKeys, work.scores[turn]};
      turn = (turn + 1) % 3;
    }
    SoftmaxJob job(p, e, block, stages[1], (stages[0].groups + stages[2].groups) * dim_steps);
    if (const PanelKeys& now = stages[0]; now.groups) {
      const KeyTile* keys = block.keys + (now.begin - block.first) / kTileHeight;
      for (int group = 0; group < now.groups; ++group, keys += kGroupKeys / kTileHeight) {
        score_tiles(tiles, keys[0], keys[1], now.panel->queries, dim_steps,
                    now.scores + int64_t(group) * kGroupKeys * kPairRows, job);
      }
    }
    if (const PanelKeys& now = stages[2]; now.groups) {
      const unsigned char* values = block.values + (now.begin - block.first) / kGroupKeys * group_bytes;
      for (int d = 0; d < dim; d += kStepDim, values += 2 * kTileBytes) {
        // Of a head_dim of 72 the last tiles of 16 hold nothing but padding.
        const auto multiply = p.head_dim - d > kTileHeight ? value_tiles<2> : value_tiles<1>;
        multiply(tiles, values, group_bytes, now.groups, now.scores, now.panel->output + int64_t(d) * kPairRows, job);
      }
    }
    job.finish();
  }
}

// One piece with more than kDecodeRows rows.
static void attend_rows_on_tiles(Tiles& tiles, const Problem& p, const Piece& piece, const Exponents& e,
                                 const TileWorkspace& work, float* partials, Team& team) {
  const int panel_count = (piece.rows + kPairRows - 1) / kPairRows;
  const int steps = p.head_dim / Bf16Products::kPerStep, dim = padded(p.head_dim);
  Panel panels[kMostTilePanels];
  for (int i = 0; i < panel_count; ++i) {
    Panel& panel = panels[i];
    panel.vectors = 2;
    panel.rows = piece.rows - i * kPairRows < kPairRows ? piece.rows - i * kPairRows : kPairRows;
    panel.queries = work.queries + i * TileWorkspace::query_floats(p.head_dim);
    panel.output = work.output + i * TileWorkspace::output_floats(p.head_dim);
    open_panel<Bf16Products>(p, piece, i * kPairRows, panel, e, reinterpret_cast<float*>(work.keys), team);
    memset(panel.queries + int64_t(steps) * kPairRows, 0, size_t(dim / 2 - steps) * kPairStride);
    memset(panel.output + int64_t(p.head_dim) * kPairRows, 0, size_t(dim - p.head_dim) * kPairStride);
  }
  bool found = true;
  TileBlock block;
  block.values = work.values;
  const int length = tile_block_keys(p.head_dim);
  for (block.first = piece.keys.begin / length * length; block.first < piece.keys.end; block.first += length) {
    block.begin = piece.keys.begin > block.first ? piece.keys.begin : block.first;
    block.end = piece.keys.end < block.first + length ? piece.keys.end : block.first + length;
    const auto place = p.key_dtype == DType::i8 ? place_block<DType::i8> : place_block<DType::bf16>;
    found &= place(p, piece, block, work.keys, team);
    attend_block(tiles, p, e, panels, panel_count, block, work);
  }
  for (int i = 0; i < panel_count; ++i) {
    close_panel(p, piece, i * kPairRows, panels[i], found, piece.chunks > 1 ? partials : nullptr, team);
  }
}

}  // namespace attention_amx
}  // namespace
}  // namespace lapidary
