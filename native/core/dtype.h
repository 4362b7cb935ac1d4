// dtype.h: the one table of element types.
//
// Plain types hold one element in `block_bytes`. Block types are GGUF's (ggml-common.h; spec in docs/formats.md): a
// run of `block` consecutive elements of a row shares its scales and is stored in `block_bytes`. `i4` is the logical
// type of grouped 4-bit integers (GPTQ, AWQ, compressed-tensors); it exists only in packed layouts, where its group
// size is TensorView::group. The TypeScript mirror is lib/dtype.ts; a contract test compares the two.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/inline.h"

namespace lapidary {

enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  i32,
  i8,
  u8,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  iq4_xs,
  sfp8,
  i4,
  kCount
};

struct DTypeInfo {
  const char* name;
  int block;             // elements per block
  int block_bytes;       // bytes per block
  double unit_roundoff;  // of round-to-nearest; 0 for integers and block formats
};

static constexpr DTypeInfo kDTypes[] = {
    {"f32", 1, 4, 0x1p-24},  {"f16", 1, 2, 0x1p-11}, {"bf16", 1, 2, 0x1p-8}, {"i32", 1, 4, 0},
    {"i8", 1, 1, 0},         {"u8", 1, 1, 0},        {"q4_0", 32, 18, 0},    {"q4_1", 32, 20, 0},
    {"q5_0", 32, 22, 0},     {"q5_1", 32, 24, 0},    {"q8_0", 32, 34, 0},    {"q3_k", 256, 110, 0},
    {"q4_k", 256, 144, 0},   {"q5_k", 256, 176, 0},  {"q6_k", 256, 210, 0},  {"iq4_nl", 32, 18, 0},
    {"iq4_xs", 256, 136, 0}, {"sfp8", 1, 1, 0x1p-3}, {"i4", 2, 1, 0},
};
static_assert(sizeof kDTypes / sizeof kDTypes[0] == size_t(DType::kCount));

LAPIDARY_INLINE const DTypeInfo& info(DType dtype) { return kDTypes[size_t(dtype)]; }
LAPIDARY_INLINE bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}
LAPIDARY_INLINE bool is_block(DType dtype) { return info(dtype).block > 1; }

}  // namespace lapidary
