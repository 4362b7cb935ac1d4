// attention/split_keys.cuh: results of single chunks of keys, and their merge (Flash-Decoding: T. Dao, D. Haziza, F. Massa, G. Sizov
// 2023). The block that is done last merges all chunks of its rows, in the order of the chunks, so that the bits do not depend on who
// that is. Which it is tells a ticket per (sequence, kv head), which is 0 again afterwards.
//
// A partial row is [reference m, sum l, 1 where the row sees a page that does not exist, unused | O, not divided by l].
#pragma once
#include "kernels/cuda/attention/online_softmax.cuh"
#include "kernels/cuda/attention/tile_sizes.h"
#include "kernels/cuda/attention/visible_blocks.cuh"

namespace lapidary::cuda::attention {

LAPIDARY_HOST_DEVICE int64_t partial_stride(int head_dim) { return 4 + head_dim; }

LAPIDARY_DEVICE float* partial_row(const Problem& p, const RowBlock& block, int row, int chunk) {
  const int64_t number = p.by_token ? int64_t(block.sequence.token_begin) * p.group + block.begin + row
                                    : int64_t(block.sequence.index) * kDecodeRows + row;
  return p.partials + ((number * p.kv_heads + block.kv_head) * p.most_chunks + chunk) * partial_stride(p.head_dim);
}

// Whether this block is the last of `chunks` to come here. All threads come, after their stores of partial rows.
template <Defect kDefect>
LAPIDARY_DEVICE bool is_last(uint32_t* ticket, int chunks, uint32_t* flag) {
  block_barrier();
  if (thread_index() == 0) {
    if (kDefect != Defect::missing_fence) memory_fence();
    const bool last = atomic_inc(ticket, uint32_t(chunks - 1)) == uint32_t(chunks - 1);
    if (last) memory_fence();
    store_shared(flag, last ? 1u : 0u);
  }
  block_barrier();
  return load_shared(flag) != 0;
}

LAPIDARY_DEVICE Words4 load_partial(const float* at) { return load_volatile(reinterpret_cast<const Words4*>(at)); }

// Four columns of each row at a time.
LAPIDARY_DEVICE void merge_chunks(const Problem& p, const RowBlock& block, int chunks) {
  const int quads = p.head_dim / 4;
  const int64_t stride = partial_stride(p.head_dim);
  for (int i = thread_index(); i < block.rows * quads; i += block_threads()) {
    const int row = i / quads, column = i % quads * 4;
    const float* first = partial_row(p, block, row, 0);
    float reference = kNoReference;
    bool withdrawn = false;
    for (int c = 0; c < chunks; ++c) {
      const Words4 head = load_partial(first + c * stride);
      reference = max(reference, bit_cast<float>(head.word[0]));
      withdrawn |= bit_cast<float>(head.word[2]) != 0;
    }
    float sum = 0, o[4] = {};
    for (int c = 0; c < chunks; ++c) {
      const Words4 head = load_partial(first + c * stride), values = load_partial(first + c * stride + 4 + column);
      const float factor = exp2_approx(bit_cast<float>(head.word[0]) - reference);
      sum = fma(factor, bit_cast<float>(head.word[1]), sum);
      for (int e = 0; e < 4; ++e) o[e] = fma(factor, bit_cast<float>(values.word[e]), o[e]);
    }
    const float inverse = inverse_sum(sum);
    for (int e = 0; e < 4; ++e) o[e] = withdrawn ? 0.f : o[e] * inverse;
    const int64_t element = out_element(p, query_of(p, block, row)) + column;
    store_pair(p, element, o[0], o[1]);
    store_pair(p, element + 2, o[2], o[3]);
  }
}

}  // namespace lapidary::cuda::attention
