// epilogue.h: from accumulated outputs to the output tensor: bias, GeLU or GeGLU, residual, rounding.
#pragma once
#include "kernels/cpu/matmul/panel_codecs.h"
#include "kernels/cpu/simd/math.h"
#include "ops/matmul.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// What a thread needs to finish a tile.
struct Output {
  unsigned char* data;
  int64_t row_stride;  // elements
  bool bf16;
  MatmulEpilogue epilogue;
  bool gate_up;           // panels alternate between gate and up (kPanelGateUp); without geglu the output is [gate, up]
  int64_t columns;        // of the output: N, or F = N / 2 with geglu
  const float* bias;      // [N] in the order of the weight's rows (gate first, then up), or null
  const float* residual;  // rows as the output's, or null

  LAPIDARY_MEMBER_INLINE bool geglu() const { return epilogue == MatmulEpilogue::geglu; }
};

LAPIDARY_INLINE Output describe_output(const Call& call) {
  const TensorView& out = call.out[0];
  const TensorView &bias = call.in[2], &residual = call.in[3];
  const int64_t columns = out.dims[out.rank - 1];
  const bool gate_up = call.in[1].layout == Layout::panels && (call.in[1].flags & kPanelGateUp);
  return {out.data,
          columns,
          out.dtype == DType::bf16,
          call.params_as<MatmulParams>().epilogue,
          gate_up,
          columns,
          bias.present() ? bias.as<float>() : nullptr,
          residual.present() ? residual.as<float>() : nullptr};
}

LAPIDARY_INLINE void store_outputs(const Output& out, int64_t row, int64_t column, F32 value) {
  const int64_t present = out.columns - column;
  if (out.residual) {
    const float* p = out.residual + row * out.row_stride + column;
    value = add(present >= kLanes ? load(p) : load_first(p, int(present)), value);
  }
  if (out.bf16) {
    uint16_t* p = reinterpret_cast<uint16_t*>(out.data) + row * out.row_stride + column;
    present >= kLanes ? store_bf16(p, value) : store_bf16_first(p, value, int(present));
  } else {
    float* p = reinterpret_cast<float*>(out.data) + row * out.row_stride + column;
    present >= kLanes ? store(p, value) : store_first(p, value, int(present));
  }
}

LAPIDARY_INLINE F32 load_bias(const Output& out, int64_t offset, int64_t column) {
  const int64_t present = out.columns - column;
  const float* p = out.bias + offset + column;
  return present >= kLanes ? load(p) : load_first(p, int(present));
}

// Rows of a residual lie far apart, where no hardware prefetcher sees them coming: all are asked for before the first is used.
LAPIDARY_INLINE void fetch_residual(const Output& out, int64_t column, int64_t row, int height) {
  if (out.residual == nullptr || column >= out.columns) return;
  for (int h = 0; h < height; ++h) __builtin_prefetch(out.residual + (row + h) * out.row_stride + column, 0, 3);
}

// Outputs of `panels` panels from number `panel` on, `height` rows from number `row` on: sums[p][h][R]. With geglu,
// `panel` and `panels` are even.
static void finish_tile(const Output& out, int64_t panel, int panels, int64_t row, int height, const float* sums) {
  const int64_t panel_stride = int64_t(height) * R;
  if (out.geglu()) {
    for (int p = 0; p < panels; p += 2) {
      const int64_t column = (panel + p) / 2 * R;
      if (column >= out.columns) return;
      for (int h = 0; h < height; ++h) {
        F32 gate = load(sums + p * panel_stride + h * R), up = load(sums + (p + 1) * panel_stride + h * R);
        if (out.bias) {
          gate = add(gate, load_bias(out, 0, column));
          up = add(up, load_bias(out, out.columns, column));
        }
        store_outputs(out, row + h, column, mul(gelu_tanh(gate), up));
      }
    }
    return;
  }
  const auto column_of = [&](int64_t index) {
    return out.gate_up ? index % 2 * (out.columns / 2) + index / 2 * R : index * R;
  };
  for (int p = 0; p < panels; ++p) fetch_residual(out, column_of(panel + p), row, height);
  for (int p = 0; p < panels; ++p) {
    const int64_t column = column_of(panel + p);
    if (column >= out.columns) return;
    for (int h = 0; h < height; ++h) {
      F32 value = load(sums + p * panel_stride + h * R);
      if (out.bias) value = add(value, load_bias(out, 0, column));
      if (out.epilogue == MatmulEpilogue::gelu) value = gelu_tanh(value);
      store_outputs(out, row + h, column, value);
    }
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
