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
    case DType::q8_0: return 34;
    case DType::q4_k: return 144;
    case DType::q5_k: return 176;
    case DType::q6_k: return 210;
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
    case DType::q8_0: return 32;
    case DType::q4_k:
    case DType::q5_k:
    case DType::q6_k: return 256;
    default: return 1;
  }
}

LAPIDARY_DEVICE int nibble(const unsigned char* p, int byte, bool high) {
  return int(byte_at(p, byte) >> (high ? 4 : 0) & 15);
}

// The code of weight j of a block; q8_0's is signed.
LAPIDARY_DEVICE int code(DType dtype, const unsigned char* block, int j) {
  switch (dtype) {
    case DType::q4_0: return nibble(block + 2, j % 16, j >= 16);
    case DType::q4_1: return nibble(block + 4, j % 16, j >= 16);
    case DType::q5_0: return nibble(block + 6, j % 16, j >= 16) | int(byte_at(block + 2, j / 8) >> (j % 8) & 1) << 4;
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
    case DType::q8_0: return mul(f16_at(block), q);
    case DType::q6_k: {
      const int sub = int8_t(byte_at(block + 192, j / 16));
      return mul(mul(f16_at(block + 208), float(sub)), q - 32);
    }
    default: {
      const float s = mul(f16_at(block), float(k_scale(block, j / 32)));
      const float m = mul(f16_at(block + 2), float(k_minimum(block, j / 32)));
      return dev::fma(s, q, -m);
    }
  }
}

}  // namespace lapidary::cuda::stored
