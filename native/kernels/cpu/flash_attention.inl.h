// flash_attention: softmax(scale · Q Kᵀ, capped, within each row's interval of keys) · V.
//
//   s = scale · q · k;  s = softcap · tanh(s / softcap);  out = Σ_j e^(s_j) v_j / Σ_j e^(s_j)
//
// Algorithm: blocks of keys with an online softmax, as FlashAttention (T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, 2022,
// arXiv 2205.14135; T. Dao 2023, arXiv 2307.08691), K and V read where they lie. Keys outside the visible interval are
// never touched; masks exist only where an interval ends. Decoding splits keys as Flash-Decoding does (T. Dao and
// others, 2023), in chunks of a fixed size, merged in order, so that the bits do not depend on the number of threads.
//
// Contract: ops/flash_attention.h. Parts, each with its picture and its arithmetic:
//   problem.h  visible_keys.h  kv_reader.h   what a call says, and what its device data may say
//   work_items.h                             pieces (sequence, kv head, block of rows, chunk of keys), claimed by threads
//   prefill.h  f32_products.h                many rows: rows in lanes, both products as one register tile
//   decode.h  f32_decode.h  row_prefetch.h   few rows: lanes along head_dim
//   online_softmax.h  partials.h             weights, sums, the merge of chunks
//
// This source computes everything in f32. Bytes: K and V are read once per block of 96 rows (tokens × heads of a group).
#include "kernels/cpu/flash_attention/run.h"

namespace lapidary {
namespace {

static void flash_attention(const Call& call, Team& team) {
  attention::run<attention::F32Products, attention::F32Decode>(call, team);
}

static const Kernel kKernels[] = {{OpId::flash_attention, flash_attention, attention::scratch_bytes}};

}  // namespace
}  // namespace lapidary
