// pack_source.cuh: the matrices that pack_weights reads, one code or element at a time (ops/pack_weights.h, docs/formats.md).
#pragma once
#include "core/tensor_view.h"
#include "kernels/cuda/weights/stored_weights.cuh"
#include "ops/pack_weights.h"

namespace lapidary::cuda {

struct PackSource {
  const unsigned char* weight;
  const unsigned char* scales;
  const unsigned char* zeros;
  const int32_t* order;   // of columns, or null
  int64_t weight_stride;  // bytes of a row of the tensor
  int64_t scale_stride, zero_stride;
  int64_t rows, columns;  // of the matrix
  int64_t group;
  DType dtype;  // of `weight`
  DType scale_dtype;
  bool i8_zeros;
  WeightFormat format;
  float scale;  // sfp8

  LAPIDARY_DEVICE uint32_t word(const unsigned char* p, int64_t index) const {
    return dev::load(reinterpret_cast<const uint32_t*>(p) + index);
  }
  LAPIDARY_DEVICE static int awq_position(int64_t row) { return int((row >> 1 & 3) | (row & 1) << 2); }

  // The code of a weight as panels hold it; of i8_channel, q8_0 and iq4_nl signed (ops/pack_weights.h, panels on CUDA).
  LAPIDARY_DEVICE int code(int64_t row, int64_t k) const {
    if (order) {
      k = dev::load(order + k);
      if (k < 0 || k >= columns) return 8;
    }
    switch (format) {
      case WeightFormat::i8_channel: return int8_t(stored::byte_at(weight + row * weight_stride, k));
      case WeightFormat::i4_channel:
        return int(stored::byte_at(weight + row * weight_stride, k / 2) >> (4 * (k & 1)) & 15);
      case WeightFormat::gptq:
      case WeightFormat::gptq_v2: return int(word(weight + k / 8 * weight_stride, row) >> (4 * (k & 7)) & 15);
      case WeightFormat::awq: return int(word(weight + k * weight_stride, row / 8) >> (4 * awq_position(row)) & 15);
      case WeightFormat::compressed_tensors:
        return int(word(weight + row * weight_stride, k / 8) >> (4 * (k & 7)) & 15);
      default: {
        const int weights = stored::block_weights(dtype);
        const int code = stored::code(dtype, block(row, k / weights), int(k % weights));
        return dtype == DType::iq4_nl ? stored::table_value(code) : dtype == DType::q3_k ? code + 28 : code;
      }
    }
  }
  LAPIDARY_DEVICE const unsigned char* block(int64_t row, int64_t index) const {
    return weight + row * weight_stride + index * stored::block_bytes(dtype);
  }

  // The scale of a row's group as it is stored.
  LAPIDARY_DEVICE const unsigned char* scale_of(int64_t row, int64_t g) const {
    const int bytes = scale_dtype == DType::f32 ? 4 : 2;
    if (format == WeightFormat::i4_channel || format == WeightFormat::i8_channel) return scales + row * scale_stride;
    if (format == WeightFormat::compressed_tensors) return scales + row * scale_stride + g * bytes;
    return scales + g * scale_stride + row * bytes;
  }

  // 0 … 16. `corrupt` gets an i8 zero point outside −8 … 7; it then counts as 0.
  LAPIDARY_DEVICE int zero_of(int64_t row, int64_t g, int& corrupt) const {
    if (!zeros) return 8;
    if (i8_zeros) {
      const int relative = int8_t(stored::byte_at(zeros + row * zero_stride, g));
      if (relative >= -8 && relative <= 7) return 8 + relative;
      corrupt = relative;
      return 8;
    }
    if (format == WeightFormat::compressed_tensors)
      return int(word(zeros + row / 8 * zero_stride, g) >> (4 * (row & 7)) & 15);
    if (format == WeightFormat::awq) return int(word(zeros + g * zero_stride, row / 8) >> (4 * awq_position(row)) & 15);
    const int stored_zero = int(word(zeros + g * zero_stride, row / 8) >> (4 * (row & 7)) & 15);
    return stored_zero + (format == WeightFormat::gptq ? 1 : 0);
  }
};

static inline PackSource describe_source(const Call& call) {
  const auto& params = call.params_as<PackWeightsParams>();
  const TensorView &weight = call.in[0], &scales = call.in[1], &zeros = call.in[2], &out = call.out[0];
  PackSource s = {};
  s.weight = weight.data;
  s.weight_stride = is_block(weight.dtype) ? row_bytes(weight) : weight.strides[0] * info(weight.dtype).block_bytes;
  s.dtype = weight.dtype;
  s.rows = out.dims[0];
  s.columns = out.dims[1];
  s.group = params.group;
  s.format = params.format;
  s.scale = params.scale;
  if (scales.present()) {
    s.scales = scales.data;
    s.scale_dtype = scales.dtype;
    s.scale_stride = scales.strides[0] * info(scales.dtype).block_bytes;
  }
  if (call.in[3].present()) s.order = call.in[3].as<const int32_t>();
  if (zeros.present()) {
    s.zeros = zeros.data;
    s.i8_zeros = zeros.dtype == DType::i8;
    s.zero_stride = zeros.strides[0] * info(zeros.dtype).block_bytes;
  }
  return s;
}

}  // namespace lapidary::cuda
