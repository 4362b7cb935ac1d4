// problem.cuh: what the kernels of matmul share: the rows of x, the output with its epilogue, and sums that several blocks share.
#pragma once
#include "kernels/cuda/device/math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul/dequantize.cuh"
#include "ops/matmul.h"

namespace lapidary::cuda::matmul {

// ── x ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

struct Rows {
  const unsigned char* data;
  int64_t rows, columns;
  int64_t stride;  // elements
  bool bf16;
  bool aligned;  // eight columns from a multiple of eight are whole 16-byte loads

  LAPIDARY_DEVICE float at(int64_t row, int64_t k) const {
    if (row >= rows || k >= columns) return 0;
    if (bf16) return dev::to_float(dev::load(reinterpret_cast<const dev::Bf16*>(data) + row * stride + k));
    return dev::load(reinterpret_cast<const float*>(data) + row * stride + k);
  }

  // Columns k … k + 7, k a multiple of 8; 0 past the end of the row or of the rows.
  LAPIDARY_DEVICE void eight(int64_t row, int64_t k, float (&x)[8]) const {
    if (!aligned || row >= rows || k + 8 > columns) {
      for (int i = 0; i < 8; ++i) x[i] = at(row, k + i);
      return;
    }
    if (bf16) {
      const dev::Words4 v = dev::load(reinterpret_cast<const dev::Words4*>(data + (row * stride + k) * 2));
      for (int i = 0; i < 4; ++i) {
        x[2 * i] = dev::low_bf16(v.word[i]);
        x[2 * i + 1] = dev::high_bf16(v.word[i]);
      }
      return;
    }
    for (int part = 0; part < 2; ++part) {
      const dev::Words4 v = dev::load(reinterpret_cast<const dev::Words4*>(data + (row * stride + k) * 4 + 16 * part));
      for (int i = 0; i < 4; ++i) x[4 * part + i] = dev::bit_cast<float>(v.word[i]);
    }
  }
};

// x as [M, K]: with two dimensions rows may be strided, otherwise it is contiguous (ops/matmul.h).
static inline Rows describe_rows(const TensorView& x) {
  Rows r = {};
  r.data = x.data;
  r.rows = row_count(x);
  r.columns = x.dims[x.rank - 1];
  r.stride = x.rank == 2 ? x.strides[0] : r.columns;
  r.bf16 = x.dtype == DType::bf16;
  const int64_t bytes = r.bf16 ? 2 : 4;
  r.aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && r.stride * bytes % 16 == 0;
  return r;
}

// ── y ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

struct Output {
  unsigned char* data;
  const float* bias;      // [N] in the order of the weight's rows, or null
  const float* residual;  // of the output's shape, or null
  int64_t columns;        // of the output: N, or N / 2 with geglu
  bool bf16, geglu, gelu, gate_up;

  LAPIDARY_DEVICE void store(int64_t row, int64_t column, float value) const {
    const int64_t at = row * columns + column;
    if (residual) value = dev::load(residual + at) + value;
    if (bf16)
      dev::store(reinterpret_cast<dev::Bf16*>(data) + at, dev::to_bf16(value));
    else
      dev::store(reinterpret_cast<float*>(data) + at, value);
  }
  // Row r of panels 2·pair and 2·pair + 1, summed over all columns.
  LAPIDARY_DEVICE void finish(int64_t row, int64_t pair, int r, float first, float second) const {
    if (geglu) {
      const int64_t column = pair * kPanelRows + r;
      if (column >= columns) return;
      if (bias) {
        first = first + dev::load(bias + column);
        second = second + dev::load(bias + columns + column);
      }
      return store(row, column, dev::gelu_tanh(first) * second);
    }
    finish_one(row, gate_up ? pair * kPanelRows + r : 2 * pair * kPanelRows + r, gate_up ? columns / 2 : columns,
               first);
    if (gate_up)
      finish_one(row, columns / 2 + pair * kPanelRows + r, columns, second);
    else
      finish_one(row, (2 * pair + 1) * kPanelRows + r, columns, second);
  }
  LAPIDARY_DEVICE void finish_one(int64_t row, int64_t column, int64_t end, float value) const {
    if (column >= end) return;
    if (bias) value = value + dev::load(bias + column);
    store(row, column, gelu ? dev::gelu_tanh(value) : value);
  }
};

static inline Output describe_output(const Call& call) {
  const TensorView &w = call.in[1], &bias = call.in[2], &residual = call.in[3], &out = call.out[0];
  const MatmulEpilogue epilogue = call.params_as<MatmulParams>().epilogue;
  Output o = {};
  o.data = out.data;
  o.bias = bias.present() ? bias.as<float>() : nullptr;
  o.residual = residual.present() ? residual.as<float>() : nullptr;
  o.columns = out.dims[out.rank - 1];
  o.bf16 = out.dtype == DType::bf16;
  o.geglu = epilogue == MatmulEpilogue::geglu;
  o.gelu = epilogue == MatmulEpilogue::gelu;
  o.gate_up = w.layout == Layout::panels && (w.flags & kPanelGateUp);
  return o;
}

// ── sums over several blocks ────────────────────────────────────────────────────────────────────────────────────────

// K in `splits` runs of records, a block for each. Every block leaves its sums; the one that comes last adds them, in the order of the
// splits whoever it is: results do not depend on who was when where.
struct Splits {
  int count;
  float* partial;     // [count][rows][pairs · 32]
  uint32_t* tickets;  // one per tile, 0 before and after

  // Whether this block came last. Its partial sums are in memory; `flag` is shared.
  LAPIDARY_DEVICE bool last(int tile, uint32_t* flag) const {
    dev::memory_fence();
    dev::block_barrier();
    if (dev::thread_index() == 0) dev::store_shared(flag, dev::atomic_inc(tickets + tile, uint32_t(count - 1)));
    dev::block_barrier();
    const bool last = dev::load_shared(flag) == uint32_t(count - 1);
    if (last) dev::memory_fence();  // reads of the others' sums stay behind the ticket
    return last;
  }
  LAPIDARY_DEVICE float total(int64_t at, int64_t stride) const {
    float sum = dev::load_volatile(partial + at);
    for (int split = 1; split < count; ++split) sum = sum + dev::load_volatile(partial + at + split * stride);
    return sum;
  }
};

}  // namespace lapidary::cuda::matmul
