// run.h: a call from its claims to its merge.
#pragma once
#include "kernels/cpu/flash_attention/decode.h"
#include "kernels/cpu/flash_attention/prefill.h"

namespace lapidary {
namespace {
namespace attention {

// Scratch: a workspace per thread, then partial rows. Both in floats, rounded to whole pages, so that threads share no
// line.
LAPIDARY_INLINE int64_t workspace_floats(int head_dim) {
  const int64_t prefill = PrefillWorkspace::floats(head_dim), decode = DecodeWorkspace::floats(head_dim);
  return ((prefill > decode ? prefill : decode) + 1023) / 1024 * 1024;
}

static size_t scratch_bytes(const Call& call, int threads) {
  const Problem p = read_problem(call);
  return size_t(threads * workspace_floats(p.head_dim) +
                most_partial_rows(p, kBlockRows) * partial_stride(p.head_dim)) *
         4;
}

// Starts that hold, rows that no sequence has, the walk over the pieces, and the merge. `work` is called with a walk and
// does its pieces.
template <class Products, class Work>
LAPIDARY_INLINE void run_pieces(const Problem& p, Team& team, int block_rows, int granule, const float* partials,
                                Work&& work) {
  if (!all_starts_hold(p, team)) {
    const Range range = team_range(team, p.tokens);
    zero_tokens(p, range.begin, range.end);
    return;
  }
  if (team.thread == 0 && p.query_starts) {
    zero_tokens(p, 0, p.sequences ? p.query_starts[0] : p.tokens);
    if (p.sequences) zero_tokens(p, p.query_starts[p.sequences], p.tokens);
  }
  PieceWalk walk(p, team, block_rows, granule);
  work(walk);
  if (walk.partial_rows() == 0) return;
  team_barrier(team);
  merge_partials<Products>(p, team, partials, 1, block_rows, granule);
}

LAPIDARY_INLINE bool decodes(const Problem& p, const Piece& piece) {
  return int64_t(piece.sequence.tokens) * p.group <= kDecodeRows;
}

template <class Products, class Decode>
static void run(const Call& call, Team& team) {
  const Problem p = read_problem(call);
  float* const memory = reinterpret_cast<float*>(team.scratch);
  const int64_t workspace = workspace_floats(p.head_dim);
  float* const own = memory + team.thread * workspace;
  float* const partials = memory + team.threads * workspace;
  const Exponents e = exponents_of<Products>(p.params->scale, p.params->softcap);
  run_pieces<Products>(p, team, kBlockRows, kLanes, partials, [&](PieceWalk& walk) {
    Piece piece;
    while (walk.find(team_claim(team, 0, 1), piece)) {
      if (decodes(p, piece)) {
        decode<Products, Decode>(p, piece, e, DecodeWorkspace(own, p.head_dim), partials, team);
      } else {
        attend_rows<Products>(p, piece, e, PrefillWorkspace(own, p.head_dim), partials, team);
      }
    }
  });
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
