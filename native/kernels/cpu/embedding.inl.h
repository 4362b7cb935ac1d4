// embedding: out[t, k] = scale · table[ids[t], k].
//
// Algorithm: one token is one task; its row is expanded 256 columns at a time into f32 that stays in L1, scaled and
// stored. Contract: ops/embedding.h. Bytes: a row read and a row written per token. FLOPs: one multiplication per
// element.
#include "ops/embedding.h"

#include "kernels/cpu/kernel.h"
#include "kernels/cpu/weights/panel_rows.h"
#include "kernels/cpu/weights/row_stretch.h"
#include "kernels/cpu/weights/stored_formats.h"

namespace lapidary {
namespace {

static void embedding(const Call& call, Team& team) {
  const TensorView& ids = call.in[0];
  const TensorView& table = call.in[1];
  const TensorView& out = call.out[0];
  const float scale = call.params_as<EmbeddingParams>().scale;
  const int64_t bytes = row_bytes(out);
  const Range range = team_range(team, ids.dims[0]);
  for (int64_t token = range.begin; token < range.end; ++token) {
    const int32_t id = ids.as<int32_t>()[token];
    unsigned char* row = out.data + token * bytes;
    if (id < 0 || id >= table.dims[0]) {
      memset(row, 0, size_t(bytes));
      if (id == kNoToken) continue;
      team_fail(team, Code::kIndexOutOfRange, "embedding: ids: expected -1 ... %lld, got %lld", table.dims[0] - 1, id);
    } else {
      expand_row(table, id, scale, out.dtype, row);
    }
  }
}

static const Kernel kKernels[] = {{OpId::embedding, embedding, nullptr}};

}  // namespace
}  // namespace lapidary
