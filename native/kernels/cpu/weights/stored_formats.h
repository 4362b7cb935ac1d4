// stored_formats.h: the one reader of stored weight formats: a stretch of a row to codes, or to f32. Layouts are in
// docs/formats.md.
//
// A block format stores w = s·(code − zero) or s·code − m, with codes unsigned once expanded. In f32 every product of
// a scale, a sub-scale and a code is exact (f16 has 11 significant bits, sub-scales and codes at most 13 together), so a
// weight in f32 is its exact value, or that rounded once where a minimum is subtracted: the order of the operations
// does not show.
//
// Sources may lie at any address (mapped files), so 16- and 32-bit words are loaded with memcpy. Include after
// simd/<isa>.h.
#pragma once
#include "core/tensor_view.h"
#include "ops/weight_panels.h"

namespace lapidary {
namespace {
namespace stored {

LAPIDARY_INLINE uint16_t load_u16(const unsigned char* p) {
  uint16_t word;
  memcpy(&word, p, 2);
  return word;
}
LAPIDARY_INLINE uint32_t load_u32(const unsigned char* p) {
  uint32_t word;
  memcpy(&word, p, 4);
  return word;
}
LAPIDARY_INLINE float load_f16_scale(const unsigned char* p) { return simd::f16_to_f32(load_u16(p)); }
// A scalar of any plain float dtype.
LAPIDARY_INLINE float load_scale(const unsigned char* p, DType dtype) {
  if (dtype == DType::f16) return load_f16_scale(p);
  if (dtype == DType::bf16) return simd::bf16_to_f32(load_u16(p));
  float value;
  memcpy(&value, p, 4);
  return value;
}

// ── codes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

// Codes are handled 16 bytes at a time with the compilers' vector types: left to themselves, compilers unroll loops
// of 16 bytes into bytes.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Words8 __attribute__((vector_size(16)));

LAPIDARY_INLINE Bytes16 load16(const unsigned char* p) {
  Bytes16 bytes;
  memcpy(&bytes, p, 16);
  return bytes;
}
LAPIDARY_INLINE void store16(uint8_t* p, Bytes16 bytes) { memcpy(p, &bytes, 16); }

// `bits` bits from bit `shift` of every byte. Shifts 16-bit lanes, as x86 has no others; the mask drops what crossed
// between bytes.
LAPIDARY_INLINE Bytes16 bit_field(Bytes16 bytes, int shift, int bits) {
  const uint16_t count = uint16_t(shift);
  const uint8_t mask = uint8_t((1 << bits) - 1);
  return Bytes16(Words8(bytes) >> count) & mask;
}

// kBytes low nibbles, then as many high ones.
template <int kBytes>
LAPIDARY_INLINE void split_nibbles(const unsigned char* packed, uint8_t* codes) {
  for (int i = 0; i < kBytes; i += 16) {
    const Bytes16 bytes = load16(packed + i);
    store16(codes + i, bit_field(bytes, 0, 4));
    store16(codes + kBytes + i, bit_field(bytes, 4, 4));
  }
}

// Nibbles in order, low before high: the form of i4_channel and compressed_tensors.
template <int kBytes>
LAPIDARY_INLINE void unpack_nibbles(const unsigned char* packed, uint8_t* codes) {
  for (int i = 0; i < kBytes; i += 16) {
    const Bytes16 bytes = load16(packed + i);
    const Bytes16 low = bit_field(bytes, 0, 4), high = bit_field(bytes, 4, 4);
    store16(codes + 2 * i, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store16(codes + 2 * i + 16,
            __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  }
}

// Signed bytes as codes with zero 128.
template <int kBytes>
LAPIDARY_INLINE void bias_bytes(const unsigned char* bytes, uint8_t* codes) {
  for (int i = 0; i < kBytes; i += 16) store16(codes + i, load16(bytes + i) ^ uint8_t(128));
}

// ORs `field` bits of 32 bytes, shifted to bit 4, into 32 codes.
LAPIDARY_INLINE void add_high_bits(const unsigned char* bytes, int shift, int bits, uint8_t* codes) {
  for (int i = 0; i < 32; i += 16) {
    store16(codes + i, load16(codes + i) | bit_field(load16(bytes + i), shift, bits) << uint8_t(4));
  }
}

// ORs bit 4 of 32 codes from a 32-bit number whose bit j is weight j's.
LAPIDARY_INLINE void add_fifth_bits(const unsigned char* bits, uint8_t* codes) {
  const Bytes16 bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  for (int i = 0; i < 2; ++i) {  // byte j of the number holds the bits of codes 8j … 8j+7
    Bytes16 mask = {bits[2 * i], bits[1 + 2 * i]};
    mask = __builtin_shufflevector(mask, mask, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const Bytes16 high = Bytes16((mask & bit) == bit) & uint8_t(16);
    store16(codes + 16 * i, load16(codes + 16 * i) | high);
  }
}

// Blocks of 32. kZero is the code of value 0 in symmetric formats; kMin says that a minimum is added instead; kTable
// that codes are numbers of entries of kTable4, and kZero the entry of value 0.
template <DType kFormat>
struct Block32;

template <>
struct Block32<DType::q4_0> {
  static constexpr int kBytes = 18, kZero = 8;
  static constexpr bool kMin = false, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) { split_nibbles<16>(block + 2, codes); }
};
template <>
struct Block32<DType::q4_1> {
  static constexpr int kBytes = 20, kZero = 0;
  static constexpr bool kMin = true, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) { split_nibbles<16>(block + 4, codes); }
};
template <>
struct Block32<DType::q5_0> {
  static constexpr int kBytes = 22, kZero = 16;
  static constexpr bool kMin = false, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) {
    split_nibbles<16>(block + 6, codes);
    add_fifth_bits(block + 2, codes);
  }
};
template <>
struct Block32<DType::q5_1> {
  static constexpr int kBytes = 24, kZero = 0;
  static constexpr bool kMin = true, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) {
    split_nibbles<16>(block + 8, codes);
    add_fifth_bits(block + 4, codes);
  }
};
template <>
struct Block32<DType::iq4_nl> {
  static constexpr int kBytes = 18, kZero = 128;
  static constexpr bool kMin = false, kTable = true;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) { split_nibbles<16>(block + 2, codes); }
};
template <>
struct Block32<DType::q8_0> {
  static constexpr int kBytes = 34, kZero = 128;
  static constexpr bool kMin = false, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, uint8_t* codes) { bias_bytes<32>(block + 2, codes); }
};

// The 6-bit scales and minimums of a Q4_K or Q5_K block: sc[8], mn[8] from 12 bytes.
LAPIDARY_INLINE void unpack_k_scales(const unsigned char* b, uint8_t* sc, uint8_t* mn) {
  for (int s = 0; s < 4; ++s) {
    sc[s] = b[s] & 63;
    mn[s] = b[s + 4] & 63;
    sc[s + 4] = uint8_t((b[s + 8] & 15) | ((b[s] >> 6) << 4));
    mn[s + 4] = uint8_t((b[s + 8] >> 4) | ((b[s + 4] >> 6) << 4));
  }
}

// Numbers of entries of kTable4 become the entries.
LAPIDARY_INLINE void look_up(uint8_t* codes, int count) {
  for (int i = 0; i < count; ++i) codes[i] = kTable4[codes[i]];
}

// Blocks of 256, read a record of 64 weights (0 … 3) at a time. kSuper: w = d·sc·(code − kZero) with d at kScale and
// scales() of 16 columns each; otherwise d, dmin and the scales of unpack_k_scales().
template <DType kFormat>
struct Block256;

template <>
struct Block256<DType::q3_k> {
  static constexpr int kBytes = 110, kZero = 4, kScale = 108;
  static constexpr bool kSuper = true, kTable = false;
  // Bit 2 of a code is in the first 32 bytes, bits 0 and 1 in the 64 after them.
  LAPIDARY_INLINE void codes(const unsigned char* block, int record, uint8_t* codes) {
    const unsigned char* low = block + 32 + 32 * (record >> 1);
    for (int i = 0; i < 64; i += 16) {
      const int run = 2 * record + i / 32;  // of 32 columns
      const Bytes16 high = bit_field(load16(block + i % 32), run, 1);
      store16(codes + i, bit_field(load16(low + i % 32), 2 * (run % 4), 2) | high << uint8_t(2));
    }
  }
  // Six bits each: the lower four in nibbles of 8 bytes, first the low ones; the upper two in 4 bytes.
  LAPIDARY_INLINE void scales(const unsigned char* block, int8_t* sc) {
    const unsigned char* b = block + 96;
    for (int i = 0; i < 16; ++i) {
      const int low = i < 8 ? b[i] & 15 : b[i - 8] >> 4;
      sc[i] = int8_t((low | (b[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32);
    }
  }
};

template <>
struct Block256<DType::q4_k> {
  static constexpr int kBytes = 144, kZero = 0;
  static constexpr bool kSuper = false, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, int record, uint8_t* codes) {
    split_nibbles<32>(block + 16 + 32 * record, codes);
  }
};
template <>
struct Block256<DType::q5_k> {
  static constexpr int kBytes = 176, kZero = 0;
  static constexpr bool kSuper = false, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, int record, uint8_t* codes) {
    const unsigned char* high = block + 16;
    split_nibbles<32>(block + 48 + 32 * record, codes);
    add_high_bits(high, 2 * record, 1, codes);
    add_high_bits(high, 2 * record + 1, 1, codes + 32);
  }
};
template <>
struct Block256<DType::q6_k> {
  static constexpr int kBytes = 210, kZero = 32, kScale = 208;
  static constexpr bool kSuper = true, kTable = false;
  LAPIDARY_INLINE void codes(const unsigned char* block, int record, uint8_t* codes) {
    const unsigned char* low = block + 64 * (record >> 1);
    const unsigned char* high = block + 128 + 32 * (record >> 1);
    const int shift = 4 * (record & 1);  // records 0 and 2 take low nibbles and bits 0 … 3, 1 and 3 the rest
    for (int i = 0; i < 64; i += 16) store16(codes + i, bit_field(load16(low + i), shift, 4));
    add_high_bits(high, shift, 2, codes);
    add_high_bits(high, shift + 2, 2, codes + 32);
  }
  LAPIDARY_INLINE void scales(const unsigned char* block, int8_t* sc) { memcpy(sc, block + 192, 16); }
};
template <>
struct Block256<DType::iq4_xs> {
  static constexpr int kBytes = 136, kZero = 128, kScale = 0;
  static constexpr bool kSuper = true, kTable = true;
  LAPIDARY_INLINE void codes(const unsigned char* block, int record, uint8_t* codes) {
    for (int i = 0; i < 2; ++i) split_nibbles<16>(block + 8 + 32 * record + 16 * i, codes + 32 * i);
  }
  // One of six bits for 32 columns: the lower four in nibbles, the upper two in a 16-bit number.
  LAPIDARY_INLINE void scales(const unsigned char* block, int8_t* sc) {
    const int high = load_u16(block + 2);
    for (int i = 0; i < 16; ++i) {
      const int s = i / 2, low = block[4 + s / 2] >> (4 * (s % 2)) & 15;
      sc[i] = int8_t((low | (high >> (2 * s) & 3) << 4) - 32);
    }
  }
};

// gemma.cpp's 8-bit switching float: sign, then 5 exponent and 2 mantissa bits below 2⁻⁷, 4 and 3 above; assembled as
// bf16 bits. Byte 0 is 0; 0x80, which no encoder writes, is −0.
LAPIDARY_INLINE float sfp8_to_f32(uint8_t byte) {
  const uint32_t v = byte & 127;
  const uint32_t magnitude = v < 64 ? 0x3400u + (v << 5) : 0x3800u + (v << 4);
  const uint32_t wide = ((v ? magnitude : 0) | uint32_t(byte & 128) << 8) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// value[i] = s·(code − zero); count is a multiple of 16.
LAPIDARY_INLINE void scale_codes(const uint8_t* codes, int count, float s, int zero, float* values) {
  const simd::F32 scale = simd::set1(s);
  const simd::I32 offset = simd::set1_i32(zero);
  for (int i = 0; i < count; i += simd::kLanes) {
    simd::store(values + i, simd::mul(scale, simd::to_f32(simd::sub(simd::load_u8_i32(codes + i), offset))));
  }
}
// value[i] = s·code − m; count is a multiple of 16.
LAPIDARY_INLINE void scale_codes_min(const uint8_t* codes, int count, float s, float m, float* values) {
  const simd::F32 scale = simd::set1(s), minimum = simd::set1(m);
  for (int i = 0; i < count; i += simd::kLanes) {
    simd::store(values + i, simd::sub(simd::mul(scale, simd::to_f32(simd::load_u8_i32(codes + i))), minimum));
  }
}

template <DType kFormat>
static void blocks32_to_f32(const unsigned char* blocks, int64_t count, float* values) {
  using Block = Block32<kFormat>;
  for (int64_t b = 0; b < count; ++b, blocks += Block::kBytes, values += 32) {
    uint8_t codes[32];
    Block::codes(blocks, codes);
    if constexpr (Block::kTable) look_up(codes, 32);
    const float s = load_f16_scale(blocks);
    if constexpr (Block::kMin)
      scale_codes_min(codes, 32, s, -load_f16_scale(blocks + 2), values);
    else
      scale_codes(codes, 32, s, Block::kZero, values);
  }
}

template <DType kFormat>
static void blocks256_to_f32(const unsigned char* blocks, int64_t count, float* values) {
  using Block = Block256<kFormat>;
  for (int64_t b = 0; b < count; ++b, blocks += Block::kBytes) {
    for (int record = 0; record < 4; ++record, values += 64) {
      uint8_t codes[64];
      Block::codes(blocks, record, codes);
      if constexpr (Block::kTable) look_up(codes, 64);
      if constexpr (Block::kSuper) {
        const float d = load_f16_scale(blocks + Block::kScale);
        int8_t sc[16];
        Block::scales(blocks, sc);
        for (int i = 0; i < 4; ++i) {
          scale_codes(codes + 16 * i, 16, d * float(sc[4 * record + i]), Block::kZero, values + 16 * i);
        }
      } else {
        uint8_t sc[8], mn[8];
        unpack_k_scales(blocks + 4, sc, mn);
        const float d = load_f16_scale(blocks), dmin = load_f16_scale(blocks + 2);
        for (int i = 0; i < 2; ++i) {
          const int s = 2 * record + i;
          scale_codes_min(codes + 32 * i, 32, d * float(sc[s]), dmin * float(mn[s]), values + 32 * i);
        }
      }
    }
  }
}

// 16-bit floats at any address.
template <bool kBf16>
static void halves_to_f32(const unsigned char* row, int64_t columns, float* values) {
  constexpr int kLanes = simd::kLanes;
  uint16_t halves[kLanes];
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    memcpy(halves, row + 2 * k, sizeof halves);
    simd::store(values + k, kBf16 ? simd::load_bf16(halves) : simd::load_f16(halves));
  }
  for (; k < columns; ++k) {
    values[k] = kBf16 ? simd::bf16_to_f32(load_u16(row + 2 * k)) : simd::f16_to_f32(load_u16(row + 2 * k));
  }
}

// Columns [begin, begin + columns) of a stored row as f32, before any tensor scale. begin and columns are whole blocks.
[[maybe_unused]] static void row_to_f32(DType dtype, const unsigned char* row, int64_t begin, int64_t columns,
                                        float* values) {
  const DTypeInfo& format = info(dtype);
  const unsigned char* from = row + begin / format.block * format.block_bytes;
  const int64_t blocks = columns / format.block;
  switch (dtype) {
    case DType::f32: memcpy(values, from, size_t(columns) * 4); break;
    case DType::f16: halves_to_f32<false>(from, columns, values); break;
    case DType::bf16: halves_to_f32<true>(from, columns, values); break;
    case DType::sfp8:
      for (int64_t k = 0; k < columns; ++k) values[k] = sfp8_to_f32(from[k]);
      break;
    case DType::q4_0: blocks32_to_f32<DType::q4_0>(from, blocks, values); break;
    case DType::q4_1: blocks32_to_f32<DType::q4_1>(from, blocks, values); break;
    case DType::q5_0: blocks32_to_f32<DType::q5_0>(from, blocks, values); break;
    case DType::q5_1: blocks32_to_f32<DType::q5_1>(from, blocks, values); break;
    case DType::q8_0: blocks32_to_f32<DType::q8_0>(from, blocks, values); break;
    case DType::iq4_nl: blocks32_to_f32<DType::iq4_nl>(from, blocks, values); break;
    case DType::q3_k: blocks256_to_f32<DType::q3_k>(from, blocks, values); break;
    case DType::q4_k: blocks256_to_f32<DType::q4_k>(from, blocks, values); break;
    case DType::q5_k: blocks256_to_f32<DType::q5_k>(from, blocks, values); break;
    case DType::q6_k: blocks256_to_f32<DType::q6_k>(from, blocks, values); break;
    case DType::iq4_xs: blocks256_to_f32<DType::iq4_xs>(from, blocks, values); break;
    default: break;
  }
}

// The address of row `row` of a strided matrix: block formats are contiguous, plain ones may be slices.
LAPIDARY_INLINE const unsigned char* row_address(const TensorView& matrix, int64_t row) {
  if (is_block(matrix.dtype)) return matrix.data + row * row_bytes(matrix);
  return matrix.data + row * matrix.strides[0] * info(matrix.dtype).block_bytes;
}

}  // namespace stored
}  // namespace
}  // namespace lapidary
