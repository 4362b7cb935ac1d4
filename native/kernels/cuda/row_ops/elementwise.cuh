// elementwise.cuh: gelu, geglu, add, softcap, cast. Formulas and contracts: ops/row_ops.h.
//
// A thread computes eight columns of one row. Tensors without gaps count as one row, so that short rows do not cost a tail each.
#pragma once
#include "kernels/cuda/device/math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_ops/rows.cuh"

namespace lapidary::cuda {

struct ElementwiseArguments {
  Rows a, b, out;
  int64_t rows, n;
  int64_t chunks;  // of a row
  float cap;       // of softcap
};

struct Gelu {
  static constexpr bool kBinary = false;
  static LAPIDARY_DEVICE float of(float x, float, float) { return dev::gelu_tanh(x); }
};
struct Geglu {
  static constexpr bool kBinary = true;
  static LAPIDARY_DEVICE float of(float gate, float up, float) { return dev::gelu_tanh(gate) * up; }
};
struct Add {
  static constexpr bool kBinary = true;
  static LAPIDARY_DEVICE float of(float a, float b, float) { return a + b; }
};
struct Softcap {
  static constexpr bool kBinary = false;
  static LAPIDARY_DEVICE float of(float x, float, float cap) { return cap * dev::tanh(dev::div(x, cap)); }
};
struct Cast {
  static constexpr bool kBinary = false;
  static LAPIDARY_DEVICE float of(float x, float, float) { return x; }
};

template <class Function>
struct Elementwise {
  using Params = ElementwiseArguments;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t index = int64_t(dev::block_index_x()) * kThreads + dev::thread_index();
    const int64_t row = p.rows == 1 ? 0 : index / p.chunks;
    if (row >= p.rows) return;
    const int64_t column = (index - row * p.chunks) * kChunk;
    if (column >= p.n) return;
    float a[kChunk], b[kChunk] = {};
    read_chunk(row_at(p.a, row), p.a.dtype, p.a.aligned, column, p.n, a);
    if constexpr (Function::kBinary) read_chunk(row_at(p.b, row), p.b.dtype, p.b.aligned, column, p.n, b);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) a[i] = Function::of(a[i], b[i], p.cap);
    write_chunk(writable_row_at(p.out, row), p.out.dtype, p.out.aligned, column, p.n, a);
  }
};

}  // namespace lapidary::cuda
