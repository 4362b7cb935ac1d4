// flash_attention: softmax(scale · Q Kᵀ, capped, within each row's interval of keys) · V. Contract: ops/flash_attention.h.
//
//   s = scale · q · k;  s = softcap · tanh(s / softcap);  out = Σ_j e^(s_j) v_j / Σ_j e^(s_j)
//
// Algorithm: FlashAttention-2 (T. Dao 2023, arXiv 2307.08691) on the instructions of compute capability 8.0, with the mask as one interval
// of keys per row. One block of threads holds a tile of rows and walks over tiles of keys; K and V have a buffer each, and each lands
// while the other is multiplied:
//
//              │ K(n) is there      │ V(n) is there
//   copies     ├── V(n) ───────────►├── K(n+1) ─────────────►
//   threads    ├── S = Q · K(n)ᵀ ───┤── P = 2^(S − m) ── O += P · V(n) ──┤
//
// Prefill    a block is (row block, kv head); rows are (token, head of the group) pairs, so that a group shares K and V. Longest first.
// Decode     sequences of up to 16 rows. Keys are cut into chunks by their number alone; a block is (chunk, kv head, sequence), and the
//            last one merges (split_keys.cuh). The grid is that of the longest sequence that the cache can hold: lengths are read on the
//            device, blocks beyond them leave at once, and a graph serves every step.
//
// Parts, each with its picture and its arithmetic:
//   problem.cuh  visible_blocks.cuh  kv_source.cuh   what a call says, what its device data may say, where keys lie
//   mma_tile.cuh  fma_tile.cuh  tile_sizes.h         tensor cores for bf16 and i8; f32 throughout for f32 and f16
//   online_softmax.cuh  split_keys.cuh               weights and sums, the merge of chunks
#pragma once
#include "kernels/cuda/attention/fma_tile.cuh"
#include "kernels/cuda/attention/mma_tile.cuh"
#include "kernels/cuda/attention/split_keys.cuh"

namespace lapidary::cuda::attention {

// A tile's rows over the tiles of keys from `begin`, a multiple of kKeys, to `end`.
template <class Tile>
LAPIDARY_DEVICE void attend(Tile& t, int begin, int end) {
  constexpr int kKeys = Tile::kKeys;
  KeyTile tile = find_tile<kKeys>(t.p, t.sequence(), begin);
  t.load_keys(tile);
  copy_async_commit();
  t.load_queries();
  for (int first = begin; first < end; first += kKeys) {
    if constexpr (Tile::kDefect == Defect::early_read) {
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    // K(n) is there, and V(n − 1) was multiplied.
    if (Tile::kDefect != Defect::missing_barrier || first == begin) block_barrier();
    t.load_values(tile);
    copy_async_commit();
    const bool more = first + kKeys < end;
    // Where it lies is looked up while scores are made.
    const KeyTile next = more ? find_tile<kKeys>(t.p, t.sequence(), first + kKeys) : tile;
    t.multiply_keys();
    t.transform_scores(tile);
    if constexpr (Tile::kShared) {
      t.share_largest();
      block_barrier();  // K(n) was multiplied
      if (more) t.load_keys(next);
      copy_async_commit();
      t.weigh_shared();
      copy_async_wait<1>();
      block_barrier();  // V(n) is there, and so are the weights of other warps
    } else {
      copy_async_wait<0>();
      block_barrier();  // V(n) is there, and K(n) was multiplied
      if (more) t.load_keys(next);
      copy_async_commit();
      t.weigh_own();
    }
    t.multiply_values();
    tile = next;
  }
  copy_async_wait<0>();
  block_barrier();
}

static constexpr uint32_t kStartsFlag = 0, kMissingFlag = 1, kLastFlag = 2;
static constexpr int kWithdrawn = INT32_MAX;  // in place of a row's lowest key

// Marks rows that saw a page which does not exist. True where there may be some.
template <class Tile>
LAPIDARY_DEVICE bool withdraw_rows(Tile& t, int begin, int end) {
  if (!is_paged(t.p)) return false;
  if (t.missing) atomic_or(t.shared.flags + kMissingFlag, 1u);
  block_barrier();
  if (load_shared(t.shared.flags + kMissingFlag) == 0) return false;
  const RowBlock block = t.state().block;
  for (int row = thread_index(); row < block.rows; row += block_threads()) {
    const Interval seen = {load_shared(t.shared.low + row), load_shared(t.shared.high + row)};
    if (sees_missing_page(t.p, block.sequence, seen, begin, end)) store_shared(t.shared.low + row, kWithdrawn);
  }
  block_barrier();
  return true;
}

template <class Tile>
LAPIDARY_DEVICE void store_results(Tile& t, bool withdrawn) {
  const RowBlock block = t.state().block;
  t.for_results(
      block, [](int, float, float) {},
      [&](int row, int column, float first, float second, float sum) {
        const bool zero = withdrawn && load_shared(t.shared.low + row) == kWithdrawn;
        const float inverse = inverse_sum(sum);
        store_pair(t.p, out_element(t.p, query_of(t.p, block, row)) + column, zero ? 0.f : first * inverse,
                   zero ? 0.f : second * inverse);
      });
}

template <class Tile>
LAPIDARY_DEVICE void store_partials(Tile& t, int chunk, bool withdrawn) {
  const RowBlock block = t.state().block;
  t.for_results(
      block,
      [&](int row, float reference, float sum) {
        const float zero = withdrawn && load_shared(t.shared.low + row) == kWithdrawn ? 1.f : 0.f;
        store(reinterpret_cast<Words4*>(partial_row(t.p, block, row, chunk)),
              Words4{{bit_cast<uint32_t>(reference), bit_cast<uint32_t>(sum), bit_cast<uint32_t>(zero), 0}});
      },
      [&](int row, int column, float first, float second, float) {
        store(reinterpret_cast<Words2*>(partial_row(t.p, block, row, chunk) + 4 + column),
              Words2{{bit_cast<uint32_t>(first), bit_cast<uint32_t>(second)}});
      });
}

// The block's rows and intervals in shared memory, and what follows from them. A barrier lies before it where that is in use.
template <class Tile>
LAPIDARY_DEVICE VisibleBlocks prepare_rows(const Problem& p, const RowBlock& block, typename Tile::Shared& shared,
                                           bool reports) {
  fill_intervals<Tile::kRows>(p, block, shared.low, shared.high, reports);
  if (thread_index() == 0) {
    store_shared(shared.flags + kMissingFlag, 0u);
    shared.rows.block = block;
  }
  block_barrier();
  const VisibleBlocks seen = find_blocks<Tile::kRows>(block, shared.low, shared.high);
  if (thread_index() == 0) shared.rows.seen = seen;
  block_barrier();
  return seen;
}

// ── decode ──────────────────────────────────────────────────────────────────────────────────────────────────────────
struct DecodeParams {
  Problem problem;
  int64_t first_pair, pairs;  // of sequence and kv head, in this launch
};

template <class Tile>
struct Decode {
  using Params = DecodeParams;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kMinBlocks = sizeof(typename Tile::Shared) <= 75 * 1024 ? 3 : 2;

  LAPIDARY_DEVICE static void run_item(const Params& params, int64_t item, typename Tile::Shared& shared) {
    const Problem& p = params.problem;
    const int chunk = int(item % p.most_chunks);
    const int64_t pair = params.first_pair + item / p.most_chunks;
    const int index = int(pair / p.kv_heads), kv_head = int(pair % p.kv_heads);
    const int64_t rows = int64_t(tokens_of(p, index)) * p.group;
    if (rows == 0 || rows > kDecodeRows) return;
    const bool reports = chunk == 0 && kv_head == 0;
    const RowBlock block =
        make_row_block(p, read_sequence(p, index, reports && thread_index() == 0), kv_head, 0, Tile::kRows);
    const VisibleBlocks seen = prepare_rows<Tile>(p, block, shared, reports);

    const int base = seen.begin / Tile::kKeys * Tile::kKeys, span = seen.end - base;
    const int chunk_keys =
        kChunkKeys * int((int64_t(span) + kChunkKeys * kMostChunks - 1) / (kChunkKeys * kMostChunks));
    const int chunks = span > 0 ? (span - 1) / chunk_keys + 1 : 1;
    if (chunk >= chunks) return;
    const int begin = base + chunk * chunk_keys, end = seen.end - begin < chunk_keys ? seen.end : begin + chunk_keys;

    Tile t(p, shared);
    if (begin < end) attend(t, begin, end);
    t.complete_sums();
    const bool withdrawn = withdraw_rows(t, begin, end);
    if (chunks == 1) return store_results(t, withdrawn);
    store_partials(t, chunk, withdrawn);
    if (is_last<Tile::kDefect>(p.tickets + item / p.most_chunks, chunks, shared.flags + kLastFlag))
      merge_chunks(p, block, chunks);
  }

  LAPIDARY_DEVICE static void run(const Params& params, unsigned char* memory) {
    auto& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
    const Problem& p = params.problem;
    const int blocks = grid_size_x(), me = block_index_x();
    if (!all_starts_hold(p, shared.flags + kStartsFlag)) return zero_tokens(p, 0, p.tokens, me, blocks);
    if (p.query_starts && params.first_pair == 0) {
      zero_tokens(p, 0, load(p.query_starts), me, blocks);
      zero_tokens(p, load(p.query_starts + p.sequences), p.tokens, me, blocks);
    }
    const int64_t items = params.pairs * p.most_chunks;
    for (int64_t item = me; item < items; item += blocks) {
      run_item(params, item, shared);
      block_barrier();
    }
  }
};

// ── prefill ─────────────────────────────────────────────────────────────────────────────────────────────────────────
struct PrefillParams {
  Problem problem;
  int64_t row_blocks;  // at least as many as there are
};

template <class Tile>
struct Prefill {
  using Params = PrefillParams;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kMinBlocks = 2 * sizeof(typename Tile::Shared) + 2048 <= 228 * 1024 ? 2 : 1;
  static constexpr int kRows = Tile::kRows;

  LAPIDARY_DEVICE static int64_t blocks_of(const Problem& p, int sequence) {
    const int64_t rows = int64_t(tokens_of(p, sequence)) * p.group;
    return rows > kDecodeRows ? (rows + kRows - 1) / kRows : 0;
  }

  // Row block `index` of those of all sequences, each one's last first. False: there are fewer. Every warp finds the same.
  LAPIDARY_DEVICE static bool find_row_block(const Problem& p, int64_t index, int& sequence, int64_t& row_block) {
    for (int base = 0; base < p.sequences; base += kWarp) {
      const int64_t count = base + lane() < p.sequences ? blocks_of(p, base + lane()) : 0;
      int64_t up_to = count;
      for (int delta = 1; delta < kWarp; delta *= 2) {
        const int64_t below = shuffle_up(up_to, delta);
        if (lane() >= delta) up_to += below;
      }
      const int64_t total = shuffle(up_to, kWarp - 1);
      if (index >= total) {
        index -= total;
        continue;
      }
      const uint32_t beyond = warp_ballot(up_to > index);
      const int owner = 31 - leading_zeros(beyond & (0 - beyond));
      sequence = base + owner;
      row_block = shuffle(up_to, owner) - 1 - index;
      return true;
    }
    return false;
  }

  LAPIDARY_DEVICE static void run_item(const Params& params, int64_t item, typename Tile::Shared& shared) {
    const Problem& p = params.problem;
    const int kv_head = int(item / params.row_blocks);
    int index;
    int64_t row_block;
    if (!find_row_block(p, item % params.row_blocks, index, row_block)) return;
    const Sequence sequence = read_sequence(p, index, kv_head == 0 && row_block == 0 && thread_index() == 0);
    const RowBlock block = make_row_block(p, sequence, kv_head, row_block * kRows, kRows);
    const VisibleBlocks seen = prepare_rows<Tile>(p, block, shared, kv_head == 0);
    Tile t(p, shared);
    if (seen.begin < seen.end) attend(t, seen.begin / Tile::kKeys * Tile::kKeys, seen.end);
    t.complete_sums();
    store_results(t, withdraw_rows(t, seen.begin, seen.end));
  }

  LAPIDARY_DEVICE static void run(const Params& params, unsigned char* memory) {
    auto& shared = *reinterpret_cast<typename Tile::Shared*>(memory);
    const Problem& p = params.problem;
    if (!all_starts_hold(p, shared.flags + kStartsFlag)) return;  // the decoding launch zeros and reports
    const int64_t items = params.row_blocks * p.kv_heads;
    for (int64_t item = block_index_x(); item < items; item += grid_size_x()) {
      run_item(params, item, shared);
      block_barrier();
    }
  }
};

}  // namespace lapidary::cuda::attention
