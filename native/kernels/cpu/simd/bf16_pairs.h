// simd/bf16_pairs.h: AVX-512 functions that feed tiles. Include after simd/avx512_bf16.h.
#pragma once

namespace lapidary {
namespace {
namespace simd {

// Lane i: the bf16 of even[i] in its low half, of odd[i] in its high half; to nearest even. A row of a B tile.
LAPIDARY_INLINE Bytes bf16_pairs(F32 even, F32 odd) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                           21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                           11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(load_bytes(kInterleave), pack_bf16(odd, even));
}

// 1 + b / 256 for byte kByte of every lane: the byte is moved to the top of a float's fraction. Two instructions, where
// a conversion takes three; what is scaled by 1/256 costs nothing to scale back.
template <int kByte>
LAPIDARY_INLINE F32 byte_fraction(Bytes a) {
  Bytes moved;
  if constexpr (kByte == 0) moved = _mm512_slli_epi32(a, 15);
  if constexpr (kByte == 1) moved = _mm512_slli_epi32(a, 7);
  if constexpr (kByte == 2) moved = _mm512_srli_epi32(a, 1);
  if constexpr (kByte == 3) moved = _mm512_srli_epi32(a, 9);
  constexpr int kAndOr = 0xea;  // (moved & mask) | one
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x007f8000), _mm512_set1_epi32(0x3f800000), kAndOr));
}

}  // namespace simd
}  // namespace
}  // namespace lapidary
