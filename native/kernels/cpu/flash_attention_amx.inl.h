// flash_attention on AMX: as flash_attention.inl.h, with both products of a prefill in tiles.
//
// Contract: ops/flash_attention.h, kind bf16, where K and V are bf16 or i8. f32 and f16 keys, and pieces of at most 8
// rows (decoding, bound by memory), take the AVX-512 path.
//
// The products: s = Σ bf16(q) · k and O = Σ bf16(w) · v, exact products, f32 sums. Head_dim is summed in steps of 32,
// each step as two chains of 16 (even and odd elements); keys likewise, 32 at a time from the beginning of the block.
// f32 sums below 2⁻¹²⁶ count as 0, and so do subnormal elements. Accumulated additions: 18 + head_dim / 32 per score,
// 18 + keys / 32 per output element and move of the reference.
//
// Parts: flash_attention_amx/tile_prefill.h has the picture and the arithmetic, tile_keys.h how K and V become tiles;
// everything else is flash_attention's.
#include "kernels/cpu/flash_attention/run.h"
#include "kernels/cpu/flash_attention_amx/tile_prefill.h"

namespace lapidary {
namespace {
namespace attention_amx {

LAPIDARY_INLINE bool takes_tiles(const Problem& p) { return p.key_dtype == DType::bf16 || p.key_dtype == DType::i8; }

LAPIDARY_INLINE int64_t workspace_floats(int head_dim) {
  const int64_t prefill = TileWorkspace::floats(head_dim), decode = DecodeWorkspace::floats(head_dim);
  return ((prefill > decode ? prefill : decode) + 1023) / 1024 * 1024;
}

static size_t scratch_bytes(const Call& call, int threads) {
  const Problem p = read_problem(call);
  if (!takes_tiles(p)) return attention::scratch_bytes(call, threads);
  const int64_t partial_rows = most_partial_rows(p, tile_block_rows(p.head_dim));
  return size_t(threads * workspace_floats(p.head_dim) + partial_rows * partial_stride(p.head_dim)) * 4;
}

static void flash_attention(const Call& call, Team& team) {
  const Problem p = read_problem(call);
  if (!takes_tiles(p)) return attention::run<F32Products, F32Decode>(call, team);
  float* const memory = reinterpret_cast<float*>(team.scratch);
  const int64_t workspace = workspace_floats(p.head_dim);
  float* const own = memory + team.thread * workspace;
  float* const partials = memory + team.threads * workspace;
  const Exponents e = exponents_of<Bf16Products>(p.params->scale, p.params->softcap);
  run_pieces<Bf16Products>(p, team, tile_block_rows(p.head_dim), kPairRows, partials, [&](PieceWalk& walk) {
    Tiles tiles(kFullTiles);
    Piece piece;
    while (walk.find(team_claim(team, 0, 1), piece)) {
      if (decodes(p, piece)) {
        decode<Bf16Products, F32Decode>(p, piece, e, DecodeWorkspace(own, p.head_dim), partials, team);
      } else {
        attend_rows_on_tiles(tiles, p, piece, e, TileWorkspace(own, p.head_dim), partials, team);
      }
    }
  });
}

}  // namespace attention_amx

static const Kernel kKernels[] = {
    {OpId::flash_attention, attention_amx::flash_attention, attention_amx::scratch_bytes}};

}  // namespace
}  // namespace lapidary
