// epilogue.h: from accumulated outputs to the output tensor: bias, GeGLU, rounding.
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
  bool geglu;
  bool gate_up;       // panels alternate between gate and up (kPanelGateUp); without geglu the output is [gate, up]
  int64_t columns;    // of the output: N, or F = N / 2 with geglu
  const float* bias;  // [N] in the order of the weight's rows (gate first, then up), or null
};

LAPIDARY_INLINE Output describe_output(const Call& call) {
  const TensorView& out = call.out[0];
  const TensorView& bias = call.in[2];
  const bool geglu = call.params_as<MatmulParams>().epilogue == MatmulEpilogue::geglu;
  const int64_t columns = out.dims[out.rank - 1];
  const bool gate_up = call.in[1].layout == Layout::panels && (call.in[1].flags & kPanelGateUp);
  return {out.data,
          columns,
          out.dtype == DType::bf16,
          geglu,
          gate_up,
          columns,
          bias.present() ? bias.as<float>() : nullptr};
}

LAPIDARY_INLINE void store_outputs(const Output& out, int64_t row, int64_t column, F32 value) {
  const int64_t present = out.columns - column;
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

// Outputs of `panels` panels from number `panel` on, `height` rows from number `row` on: sums[p][h][R]. With geglu,
// `panel` and `panels` are even.
static void finish_tile(const Output& out, int64_t panel, int panels, int64_t row, int height, const float* sums) {
  const int64_t panel_stride = int64_t(height) * R;
  if (out.geglu) {
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
  for (int p = 0; p < panels; ++p) {
    const int64_t index = panel + p;
    const int64_t column = out.gate_up ? index % 2 * (out.columns / 2) + index / 2 * R : index * R;
    if (column >= out.columns) return;
    for (int h = 0; h < height; ++h) {
      F32 value = load(sums + p * panel_stride + h * R);
      if (out.bias) value = add(value, load_bias(out, 0, column));
      store_outputs(out, row + h, column, value);
    }
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
