// amx_kernels.cc: the AMX kernels themselves, against their emulated twins, bit for bit.
//
// What vitest runs as `amx_emulated` is compiled from the same sources as `amx`, but over arrays. This test runs the
// objects with the instructions: on the processor where it has AMX, by amx_trap.h where it has not (then a hundred
// times slower, so shapes are small). That the twins compute the right thing is for the op suites to say.
#include <stdio.h>

#if !defined(__x86_64__)
int main() { return 77; }
#else

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <vector>

#include "amx_trap.h"
#include "backends/cpu/amx.h"
#include "backends/cpu/kernel_sets.h"
#include "backends/cpu/pool.h"
#include "ops/flash_attention.h"
#include "ops/matmul.h"
#include "ops/weight_panels.h"

namespace lapidary {
namespace {

int cases = 0, failures = 0;

uint64_t seed = 1;
uint32_t random_bits() {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(seed >> 32);
}

const Kernel* find(const char* isa, const char* stem) {
  for (int i = 0; i < lapidary_kernel_set_count; ++i) {
    const IsaKernelSet& set = lapidary_kernel_sets[i];
    if (strcmp(set.isa, isa) == 0 && strcmp(set.stem, stem) == 0) return set.set->kernels;
  }
  return nullptr;
}

// A tensor and its memory, which moves with it.
struct Tensor {
  TensorView view;
  std::vector<unsigned char> bytes;
  Tensor(Tensor&&) = default;
  Tensor(DType dtype, std::initializer_list<int64_t> dims) {
    view.dtype = dtype;
    for (int64_t dim : dims) view.dims[view.rank++] = dim;
    int64_t stride = 1;
    for (int i = view.rank - 1; i >= 0; --i) {
      view.strides[i] = stride;
      stride *= view.dims[i];
    }
    resize(size_t(stride) * size_t(info(dtype).block_bytes));
  }
  void resize(size_t count) {
    bytes.assign(count + 64, 0);
    view.data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64);
  }
  // f32 or bf16 within ±2.
  void randomise() {
    const int size = info(view.dtype).block_bytes;
    for (int64_t i = 0; i < element_count(view); ++i) {
      const float value = float(int32_t(random_bits())) * 0x1p-30f;
      uint32_t bits;
      memcpy(&bits, &value, 4);
      if (size == 2) bits >>= 16;
      memcpy(view.data + i * size, &bits, size_t(size));
    }
  }
};

Tensor random_tensor(DType dtype, std::initializer_list<int64_t> dims) {
  Tensor tensor(dtype, dims);
  tensor.randomise();
  return tensor;
}

// Panels of random bytes below 64: every code, and scales that are finite in each type.
Tensor random_panels(DType dtype, int group, int64_t rows, int64_t columns, bool gate_up) {
  Tensor w(DType::i8, {rows, columns});
  w.view.dtype = dtype;
  w.view.layout = Layout::panels;
  w.view.panel_rows = 16;
  w.view.group = uint16_t(group);
  w.view.scale_dtype = uint8_t(DType::f16);
  w.view.flags = gate_up ? kPanelGateUp : 0;
  const int64_t count = panel_count(w.view) * panel_bytes(w.view);
  w.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) w.view.data[i] = uint8_t(random_bits() >> 26);
  return w;
}

// Runs a kernel; its output is in the call afterwards.
void run(const Kernel* kernel, Call& call, int threads) {
  const size_t scratch_bytes = kernel->scratch ? kernel->scratch(call, threads) : 0;
  std::unique_ptr<unsigned char, decltype(&free)> scratch(
      static_cast<unsigned char*>(aligned_alloc(4096, (scratch_bytes + 4096) / 4096 * 4096)), free);
  memset(scratch.get(), 0xff, scratch_bytes);
  Pool pool(threads, [] { (void)amx_request_permission(); });
  const Status started = pool.start();
  const Step step = {&call, kernel};
  const std::atomic<bool> stop{false};
  ExecutionError failure;
  if (!started.ok() || !pool.run(&step, 1, scratch.get(), stop, failure)) {
    ++failures;
    printf("FAILED: %s\n", failure.message.c_str());
  }
}

void compare(const char* stem, const std::string& what, Call& call) {
  ++cases;
  TensorView& out = call.out[0];
  const size_t bytes = size_t(element_count(out)) * size_t(info(out.dtype).block_bytes);
  std::vector<unsigned char> results[3];
  const struct {
    const char* isa;
    int threads;
  } runs[] = {{"amx_emulated", 1}, {"amx", 1}, {"amx", 2}};
  for (int i = 0; i < 3; ++i) {
    results[i].assign(bytes, 0xff);
    out.data = results[i].data();
    run(find(runs[i].isa, stem), call, runs[i].threads);
    if (results[i] == results[0]) continue;
    ++failures;
    printf("FAILED: %s %s: %s with %d threads differs from amx_emulated\n", stem, what.c_str(), runs[i].isa,
           runs[i].threads);
  }
  for (size_t i = 0; i + 4 <= bytes && out.dtype == DType::f32; i += 4) {
    float value;
    memcpy(&value, results[0].data() + i, 4);
    if (isfinite(value)) continue;
    ++failures;
    printf("FAILED: %s %s: element %zu is not finite\n", stem, what.c_str(), i / 4);
    return;
  }
}

void matmul_case(DType dtype, int group, int64_t rows, int64_t n, int64_t k, bool geglu) {
  Tensor x = random_tensor(rows % 2 ? DType::f32 : DType::bf16, {rows, k}),
         w = random_panels(dtype, group, n, k, geglu);
  Tensor bias = random_tensor(DType::f32, {n});
  Call call;
  call.op = OpId::matmul;
  call.inputs = 3;
  call.outputs = 1;
  call.in[0] = x.view;
  call.in[1] = w.view;
  if (rows % 3 == 0) call.in[2] = bias.view;
  call.out[0] = Tensor(DType::f32, {rows, geglu ? n / 2 : n}).view;
  call.params_as<MatmulParams>().epilogue = geglu ? MatmulEpilogue::geglu : MatmulEpilogue::none;
  compare("matmul", std::string(info(dtype).name) + " M=" + std::to_string(rows), call);
}

void attention_case(DType key_dtype, int64_t tokens, int64_t keys, int64_t heads, int64_t kv_heads, int64_t head_dim,
                    int window, float softcap) {
  Tensor q = random_tensor(DType::f32, {tokens, heads, head_dim});
  Tensor k(key_dtype, {keys, kv_heads, head_dim}), v(key_dtype, {keys, kv_heads, head_dim});
  Tensor scales(DType::f32, {keys, kv_heads});
  for (int64_t i = 0; i < keys * kv_heads; ++i) scales.view.as<float>()[i] = 0.01f + float(i % 7) * 0.001f;
  for (Tensor* t : {&k, &v}) {
    if (key_dtype == DType::bf16) t->randomise();
    for (int64_t i = 0; i < element_count(t->view) && key_dtype == DType::i8; ++i)
      t->view.data[i] = uint8_t(random_bits());
  }
  Call call;
  call.op = OpId::flash_attention;
  call.inputs = FlashAttentionInput::kCount;
  call.outputs = 1;
  call.in[FlashAttentionInput::q] = q.view;
  call.in[FlashAttentionInput::k] = k.view;
  call.in[FlashAttentionInput::v] = v.view;
  if (key_dtype == DType::i8) {
    call.in[FlashAttentionInput::k_scales] = scales.view;
    call.in[FlashAttentionInput::v_scales] = scales.view;
  }
  call.out[0] = Tensor(DType::f32, {tokens, heads, head_dim}).view;
  call.params_as<FlashAttentionParams>() = {1.f / sqrtf(float(head_dim)), softcap, window, 1, true};
  compare("flash_attention", std::string(info(key_dtype).name) + " headDim " + std::to_string(head_dim), call);
}

int main_test() {
  for (const char* stem : {"matmul", "flash_attention"}) {
    if (find("amx", stem) && find("amx_emulated", stem)) continue;
    printf("no AMX kernels in this build\n");
    return 77;
  }
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi")) {
    printf("the processor has no AVX512-BF16: the AMX kernels' vector code cannot run\n");
    return 77;
  }
  const bool trapped = !amx_report().available;
  if (trapped) amx_trap::install();

  matmul_case(DType::q4_0, 0, 17, 48, 352, false);    // int8, depth 32, a tail of rows
  matmul_case(DType::q6_k, 0, 48, 64, 512, true);     // int8, depth 16
  matmul_case(DType::iq4_xs, 0, 33, 48, 512, false);  // int8, depth 16, through the table
  matmul_case(DType::i8, 0, 9, 40, 100, false);       // int8, a scale per row
  matmul_case(DType::q4_0, 0, 99, 80, 1120, false);   // bf16, three stretches, a short last block
  matmul_case(DType::q4_k, 0, 70, 64, 512, true);     // bf16
  matmul_case(DType::iq4_nl, 0, 65, 48, 352, false);  // bf16, through the table
  matmul_case(DType::i4, 128, 64, 33, 384, false);    // bf16, an odd number of panels
  matmul_case(DType::bf16, 0, 33, 32, 72, false);     // bf16, copied
  matmul_case(DType::sfp8, 0, 50, 48, 96, false);
  attention_case(DType::bf16, 70, 150, 4, 2, 64, 0, 0.f);
  attention_case(DType::bf16, 40, 600, 2, 1, 256, 100, 30.f);
  attention_case(DType::i8, 33, 90, 2, 1, 72, 0, 0.f);

  printf("AMX kernels (%s): %d cases, %d failures\n", trapped ? "instructions emulated one by one" : "on the processor",
         cases, failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace lapidary

int main() { return lapidary::main_test(); }
#endif
