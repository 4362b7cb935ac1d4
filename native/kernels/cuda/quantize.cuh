// quantize: x [N, K] to Q4_0, Q8_0 or groups of 4-bit integers.   dequantize: any stored or packed matrix to f32 or bf16.
//
// Formulas and contract: ops/quantize.h, after the reference quantisers of ggml (G. Gerganov et al., ggml-quants.c), operation for
// operation: every product here is rounded before it is added to.
//
// Algorithm: a warp takes one block or group, a lane one to four neighbouring elements of it (Q4_0 and Q8_0: one). The largest magnitude
// is the maximum of the bit patterns without their signs, which also finds NaN and infinity; the first such element is the lowest lane
// of a ballot. Codes of neighbours meet by shuffles and are stored as bytes: Q4_0's blocks are 18 bytes, at even addresses.
//
// Bytes: one read, one write. FLOPs: about four per element.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weights/matrix.cuh"
#include "ops/quantize.h"

namespace lapidary::cuda {

static constexpr uint32_t kInfinityBits = 0x7f800000;
static constexpr uint16_t kNaNHalf = 0x7e00, kNaNBf16 = 0x7fc0;

struct QuantizeArguments {
  const unsigned char* x;
  int64_t row_bytes;  // of x, from one row to the next
  int64_t rows, columns;
  DType dtype, scale_dtype;
  unsigned char* out;
  unsigned char* scales;  // i4
};

LAPIDARY_DEVICE uint32_t magnitude_bits(float x) { return dev::bit_cast<uint32_t>(x) & 0x7fffffffu; }
LAPIDARY_DEVICE uint32_t warp_max(uint32_t value) {
  for (int mask = 16; mask; mask /= 2) {
    const uint32_t other = dev::shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}
// The scale's reciprocal, or 0 where the block counts as zero.
LAPIDARY_DEVICE float reciprocal(float d) {
  const float inverse = d != 0 ? dev::div(1.0f, d) : 0.0f;
  return magnitude_bits(inverse) < kInfinityBits ? inverse : 0.0f;
}
// x towards zero, as integers up to 2²².
LAPIDARY_DEVICE int truncate(float x) { return int(x); }

// The warp's block: row, and first column.
struct QuantizePlace {
  int64_t row, column;
};
LAPIDARY_DEVICE bool quantize_place(const QuantizeArguments& p, int block, QuantizePlace& place) {
  const int64_t blocks = p.columns / block;
  const int64_t index = int64_t(dev::block_index_x()) * (dev::block_threads() / dev::kWarp) + dev::warp_index();
  place = {index / blocks, index % blocks * block};
  return index < p.rows * blocks;
}
LAPIDARY_DEVICE float quantize_input(const QuantizeArguments& p, const QuantizePlace& place, int i) {
  return stored::float_at(p.x + place.row * p.row_bytes + (place.column + i) * stored::block_bytes(p.dtype), p.dtype);
}

// A warp's block of 32, one element to a lane.
struct QuantizeBlock {
  float x;
  uint32_t largest;  // bits of the largest magnitude
  bool finite;       // all 32 are
  int64_t index;     // of the block in the output
};
LAPIDARY_DEVICE bool quantize_block(const QuantizeArguments& p, QuantizeBlock& block) {
  QuantizePlace place;
  if (!quantize_place(p, 32, place)) return false;
  block.x = quantize_input(p, place, dev::lane());
  block.largest = warp_max(magnitude_bits(block.x));
  block.finite = block.largest < kInfinityBits;
  block.index = (place.row * p.columns + place.column) / 32;
  return true;
}
LAPIDARY_DEVICE void store_scale(unsigned char* to, float d, bool finite) {
  if (dev::lane() == 0) dev::store(reinterpret_cast<uint16_t*>(to), finite ? dev::to_f16(d).bits : kNaNHalf);
}

struct QuantizeQ4 {
  using Params = QuantizeArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    QuantizeBlock b;
    if (!quantize_block(p, b)) return;
    const uint32_t holders = dev::warp_ballot(magnitude_bits(b.x) == b.largest);  // never none
    const int first = 31 - dev::leading_zeros(holders & (0u - holders));
    const float extreme = dev::shuffle(b.x, first);
    float d = 0;
    if (b.finite) d = b.largest == 0 ? -0.0f : dev::div(extreme, -8.0f);  // the sign that the reference gives zeros
    const float inverse = b.finite ? reciprocal(d) : 0.0f;
    const int rounded = truncate(stored::mul(inverse == 0 ? 0.0f : b.x, inverse) + 8.5f);
    const int code = rounded < 15 ? rounded : 15;
    const int high = dev::shuffle_xor(code, 16);
    unsigned char* to = p.out + b.index * 18;
    if (dev::lane() < 16) dev::store(to + 2 + dev::lane(), static_cast<unsigned char>(code | high << 4));
    store_scale(to, d, b.finite);
  }
};

struct QuantizeQ8 {
  using Params = QuantizeArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    QuantizeBlock b;
    if (!quantize_block(p, b)) return;
    const float d = b.finite ? dev::div(dev::bit_cast<float>(b.largest), 127.0f) : 0.0f;
    const float inverse = reciprocal(d);
    // Half away from zero is truncation after adding the largest number below a half, with the sign of x.
    const float scaled = stored::mul(inverse == 0 ? 0.0f : b.x, inverse);
    const int code = truncate(scaled + (scaled < 0 ? -0x1.fffffep-2f : 0x1.fffffep-2f));
    unsigned char* to = p.out + b.index * 34;
    dev::store(to + 2 + dev::lane(), static_cast<unsigned char>(code));
    store_scale(to, d, b.finite);
  }
};

// Groups of 32 · kElements columns.
template <int kElements>
struct QuantizeI4 {
  using Params = QuantizeArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    constexpr int kGroup = 32 * kElements;
    QuantizePlace place;
    if (!quantize_place(p, kGroup, place)) return;
    const int lane = dev::lane();
    float x[kElements];
    uint32_t largest = 0;
    for (int i = 0; i < kElements; ++i) {
      x[i] = quantize_input(p, place, lane * kElements + i);
      largest = magnitude_bits(x[i]) > largest ? magnitude_bits(x[i]) : largest;
    }
    largest = warp_max(largest);
    const bool finite = largest < kInfinityBits, bf16 = p.scale_dtype == DType::bf16;
    const float exact = finite ? dev::div(dev::bit_cast<float>(largest), 7.0f) : 0.0f;
    const uint16_t bits = !finite ? (bf16 ? kNaNBf16 : kNaNHalf)
                          : bf16  ? dev::to_bf16(exact).bits
                                  : dev::to_f16(exact).bits;
    const float s = bf16 ? dev::to_float(dev::Bf16{bits}) : dev::to_float(dev::F16{bits});
    const bool usable = finite && s > 0;
    uint32_t word = 0;  // the lane's nibbles
    for (int i = 0; i < kElements; ++i) {
      // Quotients beyond −8 … 7 are clipped first, which never crosses a tie.
      const float q = usable ? dev::min(7.0f, dev::max(-8.0f, dev::div(x[i], s))) : 0.0f;
      word |= uint32_t(dev::round_to_int(q) + 8) << (4 * i);
    }
    // Eight codes to a word, lowest first.
    constexpr int kLanes = 8 / kElements;
    for (int step = 1; step < kLanes; step *= 2) {
      const uint32_t other = dev::shuffle_xor(word, step);
      const int width = 4 * kElements * step;
      word = lane & step ? other | word << width : word | other << width;
    }
    const int64_t at = place.row * p.columns + place.column;
    if (lane % kLanes == 0) dev::store(reinterpret_cast<uint32_t*>(p.out) + at / 8 + lane / kLanes, word);
    if (lane == 0) dev::store(reinterpret_cast<uint16_t*>(p.scales) + at / kGroup, bits);
  }
};

// ── dequantize ──────────────────────────────────────────────────────────────────────────────────────────────────────

// out[k] = scale · w[row, k] as f32 or bf16: the product of the f32 weight and the scale is rounded to f32 first.
LAPIDARY_DEVICE void expand_element(const Matrix& w, int64_t row, int64_t k, float scale, bool bf16, unsigned char* out,
                                    int64_t at) {
  const float value = stored::mul(weight_at(w, row, k), scale);
  if (bf16)
    dev::store(reinterpret_cast<dev::Bf16*>(out) + at, dev::to_bf16(value));
  else
    dev::store(reinterpret_cast<float*>(out) + at, value);
}

struct DequantizeArguments {
  Matrix w;
  int64_t rows, columns;
  float scale;
  bool bf16;
  unsigned char* out;
};

// A thread an element, a block a stretch of 256 columns of one row.
struct Dequantize {
  using Params = DequantizeArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t stretches = (p.columns + kThreads - 1) / kThreads, index = dev::block_index_x();
    const int64_t row = index / stretches, k = index % stretches * kThreads + dev::thread_index();
    if (k < p.columns) expand_element(p.w, row, k, p.scale, p.bf16, p.out, row * p.columns + k);
  }
};

}  // namespace lapidary::cuda
