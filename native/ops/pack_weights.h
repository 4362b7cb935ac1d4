// pack_weights.h: contracts of pack_weights and stack_weights.
//
// pack_weights brings a weight matrix W [N, K] from the form a checkpoint stores it in to the streaming form that
// matmul reads (ops/weight_panels.h), without changing any weight: dequantize(pack_weights(w)) equals dequantize(w)
// bit for bit.
//
//   format              weight                  scales            zeros                      result
//   stored              any stored dtype [N, K] –                 –                          panels of that dtype
//   i8_channel          i8  [N, K]              [N]               –                          i8, w = s·q
//   i4_channel          u8  [N, K/2]            [N]               –                          i4 row, w = s·(q − 8)
//   gptq, gptq_v2       i32 [K/8, N]            [G, N] f16|bf16   i32 [G, N/8], z−1 (v2: z)  i4 groups, w = s·(q − z)
//   awq                 i32 [K, N/8]            [G, N] f16|bf16   i32 [G, N/8]               i4 groups, w = s·(q − z)
//   compressed_tensors  i32 [N, K/8]            [N, G] f16|bf16   i32 [N/8, G] or i8 [N, G]  i4 groups, w = s·(q − z)
//
//   stored      f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, and sfp8 with its
//               tensor scale in `scale`. Panels on CUDA hold q3_k as q6_k (code + 28) and iq4_nl as q8_0: the same weights
//   [N]         or [N, 1]: channel scales, in f32, f16 or bf16
//   G           K / groupSize, or 1 where groupSize is 0: one scale per row. −1, the default: as many as scales has
//   zeros       absent: z = 8. i8 zeros of compressed_tensors are z − 8, in −8 … 7, else ERR_DATA_CORRUPT at execution
//   columnOrder i32 [K], contiguous, of the i4 groups: column j of the result is column columnOrder[j] of the weight, in group
//               j / groupSize; x goes through gather_columns. It is how GPTQ's activation order is multiplied, whose g_idx scatters a
//               group's columns. Outside 0 … K − 1: ERR_INDEX_OUT_OF_RANGE at execution, and the column has code 8
//   Orders of bits are in docs/formats.md. NaN and infinite scales are kept as they are.
//
// Rows of f32, f16, bf16, i8, u8, sfp8 and of i32 words may be strided (slices); block formats are contiguous. K must
// be a multiple of the stored block and of groupSize.
//
// stack_weights joins packed matrices of one format and K. rows: [a; b; c], where all but the last have a multiple of
// panel_rows rows. gate_up: a is gate, b is up, equal N, a multiple of panel_rows; panels alternate and matmul can
// apply GeGLU in its epilogue.
//
// Both copy: bytes read + bytes written is all they cost.
#pragma once
#include "ops/call.h"
#include "ops/weight_panels.h"

namespace lapidary {

enum class WeightFormat : uint8_t { stored, i8_channel, i4_channel, gptq, gptq_v2, awq, compressed_tensors };

struct PackWeightsParams {
  WeightFormat format;
  int32_t group;  // columns per scale of the integer formats; the whole row where there is one scale per row
  float scale;    // sfp8 only
};

struct StackWeightsParams {
  bool gate_up;
};

}  // namespace lapidary
