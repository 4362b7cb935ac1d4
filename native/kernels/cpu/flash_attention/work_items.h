// work_items.h: how a call is cut into pieces that threads claim, the same for any number of threads.
//
// A piece is (sequence, kv head, block of query rows, chunk of keys). Sequences with many rows are cut by rows only.
// Those with few rows would leave threads idle and, in decoding, one thread alone cannot draw the memory's bandwidth;
// their keys are cut into chunks too, each leaving a partial result that merge (partials.h) joins in the order of the
// chunks.
#pragma once
#include "kernels/cpu/flash_attention/visible_keys.h"

namespace lapidary {
namespace {
namespace attention {

// At most this many rows (query, head of the group) take the decode path: lanes along head_dim. From 9 rows on, lanes
// along rows waste less than half a 16-lane vector.
static constexpr int kDecodeRows = 8;

// Keys per chunk of a decoding sequence: a local layer's window of 512 then occupies two threads. 256 keys of 256 bf16
// are 256 KB per kv head, 6 µs at 40 GB/s against 0.2 µs for a claim and 1 % more bytes for the partial results.
static constexpr int kDecodeChunk = 256;

// Neighbouring kv heads of a decoding piece: theirs are the rows between a head's rows in plain tensors, and what
// follows them in a page, so together they are one stream, which hardware prefetchers follow. No more than kDecodeRows
// rows in all, so that q and O of all stay in L1.
LAPIDARY_INLINE int decode_heads(int rows, int kv_heads) {
  int heads = kDecodeRows / rows;
  if (heads > 4) heads = 4;
  return heads < kv_heads ? heads : kv_heads;
}

// A prefill of so few blocks, over all kv heads, has its keys cut as well. A partial block result is 1/32 of a chunk's
// keys and values.
static constexpr int kFewBlocks = 8;
static constexpr int kPrefillChunk = 2048;

// How the rows of one sequence are cut. `block_rows` is the most that the kernel takes at a time, `granule` a full
// vector of rows.
struct RowSplit {
  int64_t rows;
  int block_rows;
  int blocks;
  int chunk;  // keys per chunk; 0: keys are not cut
  int heads;  // kv heads per piece
};

LAPIDARY_INLINE RowSplit split_rows(int tokens, int group, int kv_heads, int block_rows, int granule) {
  RowSplit split;
  split.rows = int64_t(tokens) * group;
  split.block_rows = block_rows;
  split.blocks = 1;
  split.chunk = kDecodeChunk;
  split.heads = 1;
  if (split.rows <= kDecodeRows) {
    if (split.rows > 0) split.heads = decode_heads(int(split.rows), kv_heads);
    return split;
  }
  // Blocks of nearly equal size: 100 rows are 64 + 36, not 96 + 4.
  const int64_t blocks = (split.rows + block_rows - 1) / block_rows;
  const int64_t even = (split.rows + blocks - 1) / blocks;
  split.block_rows = int((even + granule - 1) / granule * granule);
  split.blocks = int((split.rows + split.block_rows - 1) / split.block_rows);
  split.chunk = int64_t(split.blocks) * kv_heads <= kFewBlocks ? kPrefillChunk : 0;
  return split;
}

struct Piece {
  Sequence sequence;
  int kv_head, heads;  // kv heads [kv_head, kv_head + heads)
  int64_t row_begin;
  int rows;             // of each head
  Interval keys;        // what any of the rows sees, within the chunk
  int chunk, chunks;    // one chunk: the piece writes the output itself
  int64_t partial_row;  // where the block's partial rows begin: [kv head][chunk][row]
};

// Where a head's partial rows of the piece's chunk begin.
LAPIDARY_INLINE int64_t partial_row(const Piece& piece, int kv_head) {
  return piece.partial_row + (int64_t(kv_head) * piece.chunks + piece.chunk) * piece.rows;
}

// Walks over the pieces of a call in their fixed order; indices must not descend.
class PieceWalk {
 public:
  LAPIDARY_MEMBER_INLINE PieceWalk(const Problem& problem, Team& team, int block_rows, int granule)
      : p_(problem), team_(team), block_rows_(block_rows), granule_(granule) {
    enter_sequence();
  }

  // The pieces of one block whose keys are cut, all heads and chunks.
  int64_t pieces_of_block() const { return int64_t(head_groups()) * chunks_; }

  // The piece of this index, or false past the last one.
  bool find(int64_t index, Piece& piece) {
    while (sequence_ < p_.sequences) {
      const int64_t pieces = int64_t(head_groups()) * (split_.chunk ? chunks_ : split_.blocks);
      const int64_t offset = index - first_piece_;
      if (offset < pieces) {
        describe(int(offset), piece);
        return true;
      }
      first_piece_ += pieces;
      if (split_.chunk) {
        if (chunks_ > 1) partial_row_ += int64_t(p_.kv_heads) * chunks_ * rows_of(block_);
        if (++block_ < split_.blocks) {
          enter_block();
          continue;
        }
      }
      ++sequence_;
      enter_sequence();
    }
    return false;
  }

  // Rows of partial results before the current piece; after find() returned false, of all of them.
  int64_t partial_rows() const { return partial_row_; }

 private:
  int head_groups() const { return (p_.kv_heads + split_.heads - 1) / split_.heads; }

  int rows_of(int block) const {
    const int64_t rest = split_.rows - int64_t(block) * split_.block_rows;
    return rest < split_.block_rows ? int(rest) : split_.block_rows;
  }

  Interval keys_of(int block) {
    const int64_t first = int64_t(block) * split_.block_rows;
    return visible_to_any(p_, current_, int(first / p_.group), int((first + rows_of(block) - 1) / p_.group), team_);
  }

  void enter_sequence() {
    for (; sequence_ < p_.sequences; ++sequence_) {
      current_ = read_sequence(p_, sequence_, team_);
      if (current_.tokens == 0) continue;
      split_ = split_rows(current_.tokens, p_.group, p_.kv_heads, block_rows_, granule_);
      block_ = 0;
      if (split_.chunk) enter_block();
      return;
    }
  }

  void enter_block() {
    keys_ = keys_of(block_);
    chunks_ = (keys_.end - keys_.begin + split_.chunk - 1) / split_.chunk;
    if (chunks_ < 1) chunks_ = 1;
  }

  void describe(int offset, Piece& piece) {
    piece.sequence = current_;
    piece.partial_row = partial_row_;
    int block = block_;
    if (split_.chunk) {
      // Heads innermost: threads then read neighbouring memory at about the same time.
      piece.kv_head = offset % head_groups() * split_.heads;
      piece.chunk = offset / head_groups();
      piece.chunks = chunks_;
      piece.keys.begin = keys_.begin + piece.chunk * split_.chunk;
      piece.keys.end = piece.chunk + 1 < chunks_ ? piece.keys.begin + split_.chunk : keys_.end;
    } else {
      // Blocks of one kv head in a row, so that threads share its keys in L3; the last ones, which see the most keys,
      // first.
      piece.kv_head = offset / split_.blocks;
      block = split_.blocks - 1 - offset % split_.blocks;
      piece.chunk = 0;
      piece.chunks = 1;
      piece.keys = keys_of(block);
    }
    const int rest = p_.kv_heads - piece.kv_head;
    piece.heads = split_.heads < rest ? split_.heads : rest;
    piece.row_begin = int64_t(block) * split_.block_rows;
    piece.rows = rows_of(block);
  }

  const Problem& p_;
  Team& team_;
  const int block_rows_, granule_;
  int sequence_ = 0;
  Sequence current_ = {};
  RowSplit split_ = {};
  int block_ = 0;            // of a sequence whose keys are cut
  int chunks_ = 0;           // of that block
  Interval keys_ = {};       // of that block
  int64_t first_piece_ = 0;  // index of the first piece of the sequence, or of the block where keys are cut
  int64_t partial_row_ = 0;
};

// An upper limit of partial rows, from shapes alone: what scratch memory is made for.
static int64_t most_partial_rows(const Problem& p, int block_rows) {
  if (p.sequences == 0 || p.tokens == 0) return 0;
  const int64_t all_rows = p.tokens * p.query_heads;
  const int64_t decode_most = int64_t(p.sequences) * p.kv_heads * kDecodeRows;
  const int64_t prefill_most = int64_t(p.sequences) * kFewBlocks * block_rows;
  const int64_t decode_rows = all_rows < decode_most ? all_rows : decode_most;
  const bool only_decode = p.tokens * p.group <= kDecodeRows;
  const int64_t prefill_rows = only_decode ? 0 : all_rows < prefill_most ? all_rows : prefill_most;
  const auto chunks = [&](int chunk) { return (p.keys + chunk - 1) / chunk; };
  const int64_t decode_chunks = chunks(kDecodeChunk), prefill_chunks = chunks(kPrefillChunk);
  return (decode_chunks > 1 ? decode_rows * decode_chunks : 0) +
         (prefill_chunks > 1 ? prefill_rows * prefill_chunks : 0);
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
