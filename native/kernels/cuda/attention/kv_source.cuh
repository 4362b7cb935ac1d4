// attention/kv_source.cuh: where keys and values lie, whatever holds them (plain tensors, pages, a ring of pages), and how a tile of
// them comes into shared memory.
//
// A tile is kKeys rows of kD elements, beginning at a multiple of kKeys. Its rows lie evenly spaced where keys are plain or pages hold
// whole tiles (64 tokens do): then one look into the page table serves a tile. Elsewhere each row asks for itself.
//
// In shared memory rows are cut into chunks of 8 elements (16 bytes of bf16). Rows of 64, 128, 256 or 512 elements lie close together
// and chunk c of row r at c ^ (r mod 8), so that ldmatrix, which reads one chunk of 8 rows at a time, meets 8 different bank groups;
// rows of other widths are padded by one chunk, which does the same because their width is then odd in chunks.
#pragma once
#include "kernels/cuda/attention/visible_blocks.cuh"

namespace lapidary::cuda::attention {

template <int kD>
struct TileLayout {
  static constexpr int kChunks = kD / 8;
  static constexpr bool kSwizzled = kD % 64 == 0;
  static constexpr int kStride = kSwizzled ? kD : kD + 8;
  static constexpr int elements(int rows) { return rows * kStride; }
  LAPIDARY_DEVICE static int at(int row, int chunk) {
    return row * kStride + 8 * (kSwizzled ? chunk ^ (row & 7) : chunk);
  }
  // Chunk `chunk` + `step` where they have no bit in common and `step` is a constant: so written that all steps of a row need at most
  // four registers, and offsets in the instructions. Written as at(), each step keeps a register of its own, and there are 32 of them.
  LAPIDARY_DEVICE static int at_step(int row, int chunk, int step) {
    if constexpr (!kSwizzled) return row * kStride + 8 * chunk + 8 * step;
    return row * kStride + 8 * (chunk ^ (row & 7) ^ (step & 7)) + 8 * (step & ~7);
  }
};

// One of k and v, at one kv head.
struct KvRows {
  const unsigned char* data;
  int64_t page, slot;   // strides, in elements
  const float* scales;  // of i8
};
LAPIDARY_DEVICE KvRows key_rows(const Problem& p, int kv_head, int element_bytes) {
  return {p.k + kv_head * p.k_head * element_bytes, p.k_page, p.k_slot, p.k_scales};
}
LAPIDARY_DEVICE KvRows value_rows(const Problem& p, int kv_head, int element_bytes) {
  return {p.v + kv_head * p.v_head * element_bytes, p.v_page, p.v_slot, p.v_scales};
}

struct KeyPlace {
  int page;
  int slot;
};
LAPIDARY_DEVICE KeyPlace place_of(const Problem& p, const Sequence& s, int key) {
  if (!is_paged(p)) return {0, s.key_begin + key};
  const int index = key / p.page_tokens;
  return {load(p.page_table + int64_t(s.index) * p.table_width + index % p.table_width), key - index * p.page_tokens};
}
LAPIDARY_DEVICE bool page_exists(const Problem& p, int page) { return !is_paged(p) || (page >= 0 && page < p.pages); }

// Whether the rows of a tile lie evenly spaced.
template <int kKeys>
LAPIDARY_DEVICE bool tiles_are_even(const Problem& p) {
  static_assert((kKeys & (kKeys - 1)) == 0);
  return !is_paged(p) || (p.page_tokens & (kKeys - 1)) == 0;
}

// A tile of logical keys [first, first + kKeys). Those outside of what the rows see are not read, and zeros.
struct KeyTile {
  int first;
  KeyPlace place;  // of key `first`, where tiles are even
};

template <int kKeys>
LAPIDARY_DEVICE KeyTile find_tile(const Problem& p, const Sequence& s, int first) {
  KeyTile tile = {first, {0, 0}};
  if (tiles_are_even<kKeys>(p)) tile.place = place_of(p, s, first);
  return tile;
}

struct TileRow {
  int64_t element;  // offset into KvRows::data
  KeyPlace place;
  bool valid;
};
// `missing` is set where the row is to be read but its page does not exist.
template <int kKeys>
LAPIDARY_DEVICE TileRow find_row(const Problem& p, const Sequence& s, const VisibleBlocks& seen, const KvRows& rows,
                                 const KeyTile& tile, int row, bool& missing) {
  const int key = tile.first + row;
  TileRow found = {0, {0, 0}, key >= seen.begin && key < seen.end};
  if (!found.valid) return found;
  found.place = tiles_are_even<kKeys>(p) ? KeyPlace{tile.place.page, tile.place.slot + row} : place_of(p, s, key);
  if (!page_exists(p, found.place.page)) {
    missing = true;
    found.valid = false;
    return found;
  }
  found.element = found.place.page * rows.page + found.place.slot * rows.slot;
  return found;
}

// Four signed bytes as floats: 2²³ + 128 + x is exact, and so is the difference.
LAPIDARY_DEVICE void widen_bytes(uint32_t bytes, float (&to)[4]) {
  const uint32_t biased = bytes ^ 0x80808080u;
  for (uint32_t i = 0; i < 4; ++i) to[i] = bit_cast<float>(byte_permute(biased, 0x4b000000u, 0x7540u + i)) - 8388736.f;
}

// Eight elements of 16 bits that may lie on any address.
LAPIDARY_DEVICE Words4 gather_16_bits(const unsigned char* from) {
  Words4 words;
  const Bf16* elements = reinterpret_cast<const Bf16*>(from);
  for (int i = 0; i < 4; ++i)
    words.word[i] = load(elements + 2 * i).bits | uint32_t(load(elements + 2 * i + 1).bits) << 16;
  return words;
}

// bf16: 16-byte copies that run beside the threads. Rows that are not aligned to them, or not evenly spaced, are looked for one by one;
// the loop for those that are keeps little in registers, which S and O need.
template <int kD, int kKeys, int kThreads>
LAPIDARY_DEVICE bool load_bf16_tile(const Problem& p, const Sequence& s, const VisibleBlocks& seen, const KvRows& rows,
                                    const KeyTile& tile, uint16_t* to) {
  using Layout = TileLayout<kD>;
  if (p.kv_aligned && tiles_are_even<kKeys>(p) && page_exists(p, tile.place.page)) {
    if constexpr (kThreads % Layout::kChunks == 0) {  // a thread copies the same chunk of every kStep-th row
      constexpr int kStep = kThreads / Layout::kChunks;
      const int thread = opaque(thread_index()), chunk = thread % Layout::kChunks;
      int row = thread / Layout::kChunks;
      const unsigned char* from =
          rows.data + 2 * (tile.place.page * rows.page + (tile.place.slot + row) * rows.slot + 8 * chunk);
      const int64_t step = 2 * kStep * rows.slot;
      const int begin = seen.begin - tile.first, end = chunk * 8 < p.head_dim ? seen.end - tile.first : 0;
#pragma unroll 4
      for (; row < kKeys; row += kStep, from += step)
        copy_async_16(to + Layout::at(row, chunk), from, row >= begin && row < end);
      return false;
    }
  }
  bool missing = false;
#pragma unroll 1
  for (int i = opaque(thread_index()); i < kKeys * Layout::kChunks; i += kThreads) {
    const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
    const TileRow found = find_row<kKeys>(p, s, seen, rows, tile, row, missing);
    const bool valid = found.valid && chunk * 8 < p.head_dim;
    const unsigned char* from = rows.data + 2 * (found.element + 8 * chunk);
    if (p.kv_aligned) {
      copy_async_16(to + Layout::at(row, chunk), from, valid);
    } else {
      store_shared(reinterpret_cast<Words4*>(to + Layout::at(row, chunk)), valid ? gather_16_bits(from) : Words4{});
    }
  }
  return missing;
}

// i8 to bf16, which holds every byte exactly; 8 bytes of a row at a time, through registers.
template <int kD, int kKeys, int kThreads>
LAPIDARY_DEVICE bool load_i8_tile(const Problem& p, const Sequence& s, const VisibleBlocks& seen, const KvRows& rows,
                                  const KeyTile& tile, int kv_head, uint16_t* to, float* scales) {
  using Layout = TileLayout<kD>;
  bool missing = false;
#pragma unroll 2
  for (int i = opaque(thread_index()); i < kKeys * Layout::kChunks; i += kThreads) {
    const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
    const TileRow found = find_row<kKeys>(p, s, seen, rows, tile, row, missing);
    Words2 bytes = {};
    if (found.valid && chunk * 8 < p.head_dim) {
      const unsigned char* from = rows.data + found.element + 8 * chunk;
      if (p.kv_aligned) {
        bytes = load_stream_8(from);
      } else {
        for (int b = 0; b < 8; ++b) bytes.word[b / 4] |= uint32_t(load(from + b)) << 8 * (b % 4);
      }
    }
    float x[2][4];
    widen_bytes(bytes.word[0], x[0]);
    widen_bytes(bytes.word[1], x[1]);
    Words4 words;
    for (int w = 0; w < 4; ++w) words.word[w] = pack_bf16(x[w / 2][2 * (w % 2)], x[w / 2][2 * (w % 2) + 1]);
    store_shared(reinterpret_cast<Words4*>(to + Layout::at(row, chunk)), words);
  }
  for (int row = opaque(thread_index()); row < kKeys; row += kThreads) {
    const TileRow found = find_row<kKeys>(p, s, seen, rows, tile, row, missing);
    float scale = 0;
    if (found.valid) {
      const int64_t index = is_paged(p)
                                ? (int64_t(found.place.page) * p.kv_heads + kv_head) * p.page_tokens + found.place.slot
                                : int64_t(found.place.slot) * p.kv_heads + kv_head;
      scale = load(rows.scales + index);
    }
    store_shared(scales + row, scale);
  }
  return missing;
}

// f32 or f16 to f32, rows `stride` floats apart.
template <int kD, int kKeys, int kThreads>
LAPIDARY_DEVICE bool load_f32_tile(const Problem& p, const Sequence& s, const VisibleBlocks& seen, const KvRows& rows,
                                   const KeyTile& tile, float* to, int stride) {
  constexpr int kQuads = kD / 4;
  bool missing = false;
  for (int i = opaque(thread_index()); i < kKeys * kQuads; i += kThreads) {
    const int row = i / kQuads, quad = i % kQuads;
    const TileRow found = find_row<kKeys>(p, s, seen, rows, tile, row, missing);
    const bool valid = found.valid && quad * 4 < p.head_dim;
    float* quad_at = to + row * stride + 4 * quad;
    if (!p.half_keys && p.kv_aligned) {
      copy_async_16(quad_at, valid ? rows.data + 4 * (found.element + 4 * quad) : rows.data, valid);
      continue;
    }
    Words4 words = {};
    for (int e = 0; e < 4 && valid; ++e) {
      const int64_t element = found.element + 4 * quad + e;
      words.word[e] = p.half_keys
                          ? bit_cast<uint32_t>(to_float(load(reinterpret_cast<const F16*>(rows.data) + element)))
                          : load(reinterpret_cast<const uint32_t*>(rows.data) + element);
    }
    store_shared(reinterpret_cast<Words4*>(quad_at), words);
  }
  return missing;
}

// Whether the row sees a key of [begin, end) that is on no page of the cache, which is reported. For the end of work whose rows were
// not all found.
LAPIDARY_DEVICE bool sees_missing_page(const Problem& p, const Sequence& s, Interval seen, int begin, int end) {
  begin = seen.begin > begin ? seen.begin : begin;
  end = seen.end < end ? seen.end : end;
  for (int64_t key = begin; key < end;) {
    const KeyPlace place = place_of(p, s, int(key));
    if (!page_exists(p, place.page)) {
      p.errors.report(kPages, s.index, place.page);
      return true;
    }
    key += p.page_tokens - place.slot;
  }
  return false;
}

}  // namespace lapidary::cuda::attention
