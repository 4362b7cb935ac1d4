// stored_weights.cuh: single weights of stored matrices: layouts and formulas of docs/formats.md, one element at a time.
//
// What packing, embedding and dequantize read with. It decodes a scale for every element; none of them is bound by that: an element is
// at most two byte loads that hit L1, beside one store of four bytes.
#pragma once
#include "core/dtype.h"
#include "kernels/cuda/device/device.h"

namespace lapidary::cuda::stored {

LAPIDARY_DEVICE float mul(float a, float b) { return dev::fma(a, b, -0.0f); }  // rounded, never fused with what follows

LAPIDARY_DEVICE uint32_t byte_at(const unsigned char* p, int64_t i) { return dev::load(p + i); }
// Block formats keep their halves at even addresses, as rows are whole blocks and tensors are aligned.
LAPIDARY_DEVICE uint32_t half_at(const unsigned char* p) { return dev::load(reinterpret_cast<const uint16_t*>(p)); }
LAPIDARY_DEVICE float f16_at(const unsigned char* p) { return dev::to_float(dev::F16{uint16_t(half_at(p))}); }
// A number of any plain float dtype.
LAPIDARY_DEVICE float float_at(const unsigned char* p, DType dtype) {
  if (dtype == DType::f32) return dev::load(reinterpret_cast<const float*>(p));
  if (dtype == DType::f16) return f16_at(p);
  return dev::to_float(dev::Bf16{uint16_t(half_at(p))});
}

// gemma.cpp's 8-bit switching float, by way of bf16 bits.
LAPIDARY_DEVICE float sfp8_to_f32(uint32_t byte) {
  const uint32_t v = byte & 127;
  const uint32_t magnitude = v == 0 ? 0 : v < 64 ? 0x3400u + (v << 5) : 0x3800u + (v << 4);
  return dev::bit_cast<float>((magnitude | (byte & 128) << 8) << 16);
}

// Bytes and weights of a block.
LAPIDARY_HOST_DEVICE int block_bytes(DType dtype) {
  switch (dtype) {
    case DType::q4_0: return 18;
    case DType::q4_1: return 20;
    case DType::q5_0: return 22;
    case DType::q5_1: return 24;
    case DType::q8_0: return 34;
    case DType::q3_k: return 110;
    case DType::q4_k: return 144;
    case DType::q5_k: return 176;
    case DType::q6_k: return 210;
    case DType::iq4_nl: return 18;
    case DType::iq4_xs: return 136;
    case DType::f32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    default: return 1;
  }
}
LAPIDARY_HOST_DEVICE int block_weights(DType dtype) {
  switch (dtype) {
    case DType::q4_0:
    case DType::q4_1:
    case DType::q5_0:
    case DType::q5_1:
    case DType::q8_0:
    case DType::iq4_nl: return 32;
    case DType::q3_k:
    case DType::q4_k:
    case DType::q5_k:
    case DType::q6_k:
    case DType::iq4_xs: return 256;
    default: return 1;
  }
}

LAPIDARY_DEVICE int nibble(const unsigned char* p, int byte, bool high) {
  return int(byte_at(p, byte) >> (high ? 4 : 0) & 15);
}

// Bit j of a 32-bit number, as bit 4 of a code.
LAPIDARY_DEVICE int fifth_bit(const unsigned char* p, int j) { return int(byte_at(p, j / 8) >> (j % 8) & 1) << 4; }

// kTable4 of ops/weight_panels.h less 128, four to a word. Written out: device code may not index a host's array.
LAPIDARY_DEVICE uint32_t table_word(int index) {
  return index == 0 ? 0xbfad9881u : index == 1 ? 0xf6eaddcfu : index == 2 ? 0x26190d01u : 0x71594535u;
}
LAPIDARY_DEVICE int table_value(int number) { return int8_t(table_word(number / 4) >> (8 * (number % 4))); }

// The code of weight j of a block; q8_0's is signed, those of iq4_nl and iq4_xs are numbers of entries of the table.
LAPIDARY_DEVICE int code(DType dtype, const unsigned char* block, int j) {
  switch (dtype) {
    case DType::q4_0: return nibble(block + 2, j % 16, j >= 16);
    case DType::q4_1: return nibble(block + 4, j % 16, j >= 16);
    case DType::q5_0: return nibble(block + 6, j % 16, j >= 16) | fifth_bit(block + 2, j);
    case DType::q5_1: return nibble(block + 8, j % 16, j >= 16) | fifth_bit(block + 4, j);
    case DType::iq4_nl: return nibble(block + 2, j % 16, j >= 16);
    case DType::iq4_xs: return nibble(block + 8 + j / 32 * 16, j % 16, j % 32 >= 16);
    case DType::q3_k: {
      const int run = j / 32;
      const int low = int(byte_at(block + 32, run / 4 * 32 + j % 32) >> (2 * (run % 4)) & 3);
      return low | int(byte_at(block, j % 32) >> run & 1) << 2;
    }
    case DType::q8_0: return int8_t(byte_at(block + 2, j));
    case DType::q4_k: return nibble(block + 16 + j / 64 * 32, j % 32, j % 64 >= 32);
    case DType::q5_k:
      return nibble(block + 48 + j / 64 * 32, j % 32, j % 64 >= 32) | int(byte_at(block + 16, j % 32) >> (j / 32) & 1)
                                                                          << 4;
    case DType::q6_k: {
      const int half = j / 128, quarter = j % 128 / 32, l = j % 32;
      const int low = nibble(block + 64 * half, l + quarter % 2 * 32, quarter >= 2);
      return low | int(byte_at(block + 128 + 32 * half, l) >> (2 * quarter) & 3) << 4;
    }
    default: return 0;
  }
}

// The six-bit scale and minimum of sub-block s of a Q4_K or Q5_K block.
LAPIDARY_DEVICE int k_scale(const unsigned char* block, int s) {
  const unsigned char* b = block + 4;
  return int(s < 4 ? byte_at(b, s) & 63 : (byte_at(b, s + 4) & 15) | byte_at(b, s - 4) >> 6 << 4);
}
LAPIDARY_DEVICE int k_minimum(const unsigned char* block, int s) {
  const unsigned char* b = block + 4;
  return int(s < 4 ? byte_at(b, s + 4) & 63 : byte_at(b, s + 4) >> 4 | byte_at(b, s) >> 6 << 4);
}

// Of q3_k, q6_k and iq4_xs: d, and the scale of sub-block s of 16 weights.
LAPIDARY_DEVICE float super_scale(DType dtype, const unsigned char* block) {
  return f16_at(block + (dtype == DType::q6_k ? 208 : dtype == DType::q3_k ? 108 : 0));
}
LAPIDARY_DEVICE int sub_scale(DType dtype, const unsigned char* block, int s) {
  if (dtype == DType::q6_k) return int8_t(byte_at(block + 192, s));
  if (dtype == DType::q3_k) {
    const int low = int(byte_at(block + 96, s % 8) >> (s < 8 ? 0 : 4) & 15);
    return (low | int(byte_at(block + 104, s % 4) >> (2 * (s / 4)) & 3) << 4) - 32;
  }
  const int low = int(byte_at(block + 4, s / 4) >> (4 * (s / 2 % 2)) & 15);  // iq4_xs: one for two
  return (low | int(half_at(block + 2) >> (2 * (s / 2)) & 3) << 4) - 32;
}

// Weight k of a stored row, before any tensor scale: exact, or rounded once where a minimum is subtracted.
LAPIDARY_DEVICE float weight(DType dtype, const unsigned char* row, int64_t k) {
  if (dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16)
    return float_at(row + k * block_bytes(dtype), dtype);
  if (dtype == DType::sfp8) return sfp8_to_f32(byte_at(row, k));
  const int weights = block_weights(dtype), j = int(k % weights);
  const unsigned char* block = row + k / weights * block_bytes(dtype);
  const float q = float(code(dtype, block, j));
  switch (dtype) {
    case DType::q4_0: return mul(f16_at(block), q - 8);
    case DType::q4_1: return dev::fma(f16_at(block), q, f16_at(block + 2));
    case DType::q5_0: return mul(f16_at(block), q - 16);
    case DType::q5_1: return dev::fma(f16_at(block), q, f16_at(block + 2));
    case DType::q8_0: return mul(f16_at(block), q);
    case DType::iq4_nl: return mul(f16_at(block), float(table_value(int(q))));
    case DType::q3_k:
    case DType::q6_k:
    case DType::iq4_xs: {
      const float value = dtype == DType::q3_k ? q - 4 : dtype == DType::q6_k ? q - 32 : float(table_value(int(q)));
      return mul(mul(super_scale(dtype, block), float(sub_scale(dtype, block, j / 16))), value);
    }
    default: {
      const float s = mul(f16_at(block), float(k_scale(block, j / 32)));
      const float m = mul(f16_at(block + 2), float(k_minimum(block, j / 32)));
      return dev::fma(s, q, -m);
    }
  }
}

}  // namespace lapidary::cuda::stored
