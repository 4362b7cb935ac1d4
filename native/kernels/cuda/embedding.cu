// embedding: out[t, k] = scale · table[ids[t], k].
//
// Algorithm: a block expands a stretch of 256 columns of one token's row, a thread an element. Contract: ops/embedding.h. Bytes: a row
// read and a row written per token. FLOPs: one multiplication per element.
#include "kernels/cuda/quantize.cuh"
#include "ops/embedding.h"

namespace lapidary::cuda {
namespace {

struct EmbeddingArguments {
  const int32_t* ids;
  Matrix table;
  int64_t vocabulary, columns;
  float scale;
  bool bf16;
  unsigned char* out;
  ErrorReporter error;
};

struct Embedding {
  using Params = EmbeddingArguments;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t stretches = (p.columns + kThreads - 1) / kThreads, index = dev::block_index_x();
    const int64_t token = index / stretches, k = index % stretches * kThreads + dev::thread_index();
    if (k >= p.columns) return;
    const int64_t id = dev::load(p.ids + token), at = token * p.columns + k;
    if (id >= 0 && id < p.vocabulary) return expand_element(p.table, id, k, p.scale, p.bf16, p.out, at);
    if (p.bf16)
      dev::store(reinterpret_cast<uint16_t*>(p.out) + at, uint16_t(0));
    else
      dev::store(reinterpret_cast<float*>(p.out) + at, 0.0f);
    if (k == 0 && id != kNoToken) p.error.report(0, p.vocabulary - 1, id);
  }
};

void launch_embedding(const Call& call, LaunchContext& context) {
  const TensorView &ids = call.in[0], &table = call.in[1];
  EmbeddingArguments p = {};
  p.ids = ids.as<int32_t>();
  p.table = describe_matrix(table);
  p.vocabulary = table.dims[0];
  p.columns = table.dims[1];
  p.scale = call.params_as<EmbeddingParams>().scale;
  p.bf16 = call.out[0].dtype == DType::bf16;
  p.out = call.out[0].data;
  p.error = context.error;
  launch<Embedding>(context, {ids.dims[0] * divide_up(p.columns, Embedding::kThreads)}, 0, p);
}

const char* const kMessages[] = {"embedding: ids: expected -1 ... %lld, got %lld"};

}  // namespace

LAPIDARY_CUDA_KERNELS(embedding, {OpId::embedding, launch_embedding, nullptr, kMessages})

}  // namespace lapidary::cuda
