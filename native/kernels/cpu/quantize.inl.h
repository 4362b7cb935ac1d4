// quantize: x [N, K] to Q4_0, Q8_0 or groups of 4-bit integers.   dequantize: any stored or packed matrix to f32 or
// bf16.
//
// Formulas and contract: ops/quantize.h. Q4_0 and Q8_0 after the reference quantisers of ggml (G. Gerganov et al.,
// ggml-quants.c); i4 after the symmetric scheme of the gemma JAX library's peft module, per group instead of per
// channel.
//
// Algorithm: rows are shared among threads. A row is widened to f32 256 columns at a time; the largest magnitude of a
// block is the integer maximum of the bit patterns without their signs, which also finds NaN and infinity.
//
//   x:  [ 32 … ][ 32 … ] …  →  |x| max, sign of the first such element  →  d, 1/d  →  codes  →  nibbles
//
// Bytes: one read, one write. FLOPs: about four per element.
#include "ops/quantize.h"

#include "kernels/cpu/kernel.h"
#include "kernels/cpu/weights/row_stretch.h"
#include "kernels/cpu/weights/stored_formats.h"

namespace lapidary {
namespace {

static constexpr uint32_t kInfinityBits = 0x7f800000;
static constexpr uint16_t kNaNHalf = 0x7e00, kNaNBf16 = 0x7fc0;

LAPIDARY_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

LAPIDARY_INLINE uint32_t magnitude_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits & 0x7fffffffu;
}

// Bits of the largest magnitude; at least kInfinityBits where an element is NaN or infinite.
LAPIDARY_INLINE uint32_t largest_magnitude(const float* x, int count) {
  uint32_t largest = 0;
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = magnitude_bits(x[i]);
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

LAPIDARY_INLINE void store_u16(unsigned char* p, uint16_t word) { memcpy(p, &word, 2); }

// The scale's reciprocal, or 0 where the block counts as zero.
LAPIDARY_INLINE float reciprocal(float d) {
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  return inverse - inverse == 0 ? inverse : 0.0f;
}

LAPIDARY_INLINE void quantize_q4_0(const float* x, unsigned char* block) {
  const uint32_t largest = largest_magnitude(x, 32);
  float d = 0, inverse = 0;
  if (largest < kInfinityBits) {
    int first = 31;  // a minimum instead of a search: no branch to mispredict
    for (int i = 0; i < 31; ++i) {
      const int here = magnitude_bits(x[i]) == largest ? i : 31;
      first = here < first ? here : first;
    }
    d = largest == 0 ? -0.0f : x[first] / -8;  // the sign that the reference gives a block of zeros
    inverse = reciprocal(d);
  }
  store_u16(block, largest < kInfinityBits ? simd::f32_to_f16(d) : kNaNHalf);
  int32_t codes[32];
  for (int i = 0; i < 32; ++i) {
    const int32_t code = int32_t((inverse == 0 ? 0 : x[i]) * inverse + 8.5f);
    codes[i] = code < 15 ? code : 15;
  }
  stored::Bytes16 packed;
  for (int i = 0; i < 16; ++i) packed[i] = uint8_t(codes[i] | codes[16 + i] << 4);
  stored::store16(block + 2, packed);
}

LAPIDARY_INLINE void quantize_q8_0(const float* x, unsigned char* block) {
  const uint32_t largest = largest_magnitude(x, 32);
  const float d = largest < kInfinityBits ? float_of(largest) / 127 : 0;
  const float inverse = reciprocal(d);
  store_u16(block, largest < kInfinityBits ? simd::f32_to_f16(d) : kNaNHalf);
  // Half away from zero is truncation after adding the largest number below a half, with the sign of x. Local arrays,
  // because stores to bytes could alias x, and would keep the loop from becoming vectors.
  int32_t codes[32];
  for (int i = 0; i < 32; ++i) {
    const float scaled = (inverse == 0 ? 0 : x[i]) * inverse;
    codes[i] = int32_t(scaled + (scaled < 0 ? -0x1.fffffep-2f : 0x1.fffffep-2f));
  }
  for (int i = 0; i < 32; ++i) block[2 + i] = uint8_t(codes[i]);
}

// One group to count/2 bytes of nibbles and its scale.
LAPIDARY_INLINE void quantize_i4(const float* x, int count, DType scale_dtype, unsigned char* packed,
                                 unsigned char* scale_at) {
  const bool bf16 = scale_dtype == DType::bf16;
  const uint32_t largest = largest_magnitude(x, count);
  const bool finite = largest < kInfinityBits;
  uint16_t bits = bf16 ? kNaNBf16 : kNaNHalf;
  if (finite) bits = bf16 ? simd::f32_to_bf16(float_of(largest) / 7) : simd::f32_to_f16(float_of(largest) / 7);
  store_u16(scale_at, bits);
  const float s = bf16 ? simd::bf16_to_f32(bits) : simd::f16_to_f32(bits);
  const bool usable = finite && s > 0;
  for (int i = 0; i < count; i += 2) {
    uint8_t codes[2];
    for (int j = 0; j < 2; ++j) {
      // Adding 1.5·2²³ rounds to an integer, half to even; quotients beyond −8 … 7 are clipped first, which never
      // crosses a tie.
      float q = usable ? x[i + j] / s : 0;
      q = q < -8 ? -8 : q > 7 ? 7 : q;
      codes[j] = uint8_t(int((q + 0x1.8p23f) - 0x1.8p23f) + 8);
    }
    packed[i / 2] = uint8_t(codes[0] | codes[1] << 4);
  }
}

static void quantize_stretch(const Call& call, int64_t row, int64_t begin, int64_t columns, const float* values) {
  const QuantizeParams& params = call.params_as<QuantizeParams>();
  const TensorView& out = call.out[0];
  unsigned char* to = out.data + row * row_bytes(out);
  switch (params.format) {
    case QuantizeFormat::q4_0:
      for (int64_t k = 0; k < columns; k += 32) quantize_q4_0(values + k, to + (begin + k) / 32 * 18);
      break;
    case QuantizeFormat::q8_0:
      for (int64_t k = 0; k < columns; k += 32) quantize_q8_0(values + k, to + (begin + k) / 32 * 34);
      break;
    case QuantizeFormat::i4: {
      const TensorView& scales = call.out[1];
      unsigned char* scale = scales.data + row * row_bytes(scales) + begin / params.group * 2;
      for (int64_t k = 0; k < columns; k += params.group, scale += 2) {
        quantize_i4(values + k, params.group, scales.dtype, to + (begin + k) / 2, scale);
      }
    }
  }
}

static void quantize(const Call& call, Team& team) {
  const TensorView& x = call.in[0];
  alignas(64) float values[kStretch];
  const Range range = team_range(team, x.dims[0]);
  for (int64_t row = range.begin; row < range.end; ++row) {
    for (int64_t k = 0; k < x.dims[1]; k += kStretch) {
      const int64_t columns = x.dims[1] - k < kStretch ? x.dims[1] - k : kStretch;
      stored::row_to_f32(x.dtype, stored::row_address(x, row), k, columns, values);
      quantize_stretch(call, row, k, columns, values);
    }
  }
}

static void dequantize(const Call& call, Team& team) {
  const TensorView& w = call.in[0];
  const TensorView& out = call.out[0];
  const float scale = call.params_as<DequantizeParams>().scale;
  // Whole panels to a thread: its rows share cache lines.
  const Range range = team_range(team, w.dims[0], w.layout == Layout::panels ? w.panel_rows : 1);
  for (int64_t row = range.begin; row < range.end; ++row) {
    expand_row(w, row, scale, out.dtype, out.data + row * row_bytes(out));
  }
}

static const Kernel kKernels[] = {
    {OpId::quantize, quantize, nullptr},
    {OpId::dequantize, dequantize, nullptr},
};

}  // namespace
}  // namespace lapidary
