// tensor_core.cuh: matmul for more than 8 rows of x, on the tensor cores: yᵀ = W · xᵀ, so that few rows of x waste little.
//
// Algorithm. W is the left operand of mma.m16n8k16, 16 rows of a panel, dequantised in registers (dequantize.cuh); x, rounded to bf16,
// the right one, eight rows at a time. A block of 4 warps holds 128 rows of W, a pair of panels per warp, and all its kTiles · 8 rows
// of x: a weight is dequantised once per block. K goes by in stages of 64 columns, kStages in flight (cp.async):
//
//   stage │ x: kTiles · 8 rows × 128 bytes, swizzled      │ warp 0: panel 0, panel 1 │ … │ warp 3 │
//         │ of all warps: a barrier before it is read      │ of the lane that copied it: no barrier      │
//
//   x in a stage: row r has its eight chunks of 16 bytes at c ^ (r & 1) · 4. A quarter of a warp reads four chunks of two rows: without
//   the exchange both would lie on the same banks.
//
// In a group of 32 columns a lane's eight are the k indices of two steps; x is read in the same order, 16 bytes for both.
//
// What is rounded (ops/matmul.h, "bf16" and "bf16 x"): x to bf16; weights as the table of dequantize.cuh says: exact but for formats with
// a minimum, q3_k, q6_k, iq4_xs and f16. A tensor core adds the 16 products of a step to the sum with at most 18 errors of 2⁻²⁴ of the largest
// (Fasi et al. 2021, PeerJ CS 7:e330: products are exact, aligned to the largest and cut off, in one or two steps). Where a group's
// scale is applied after the sum, one fused addition per 32 columns.
//
// With up to kManyRows rows a row of y has the same bits whatever their number: K is split among blocks (Splits) by the shape of W
// alone. Above, it is not split, as there are blocks enough.
//
// Bytes: W once per kTiles · 8 rows, x once per 128 columns of y. FLOPs: 2·M·N·K; beside each 2 · kTiles mma a group and panel cost 24
// integer operations for four bits, and 4 · kTiles fused additions.
#pragma once
#include "kernels/cuda/matmul/problem.cuh"

namespace lapidary::cuda::matmul {

static constexpr int kTensorThreads = 128, kTensorWarps = kTensorThreads / dev::kWarp;
static constexpr int kStageColumns = 64;
static constexpr int64_t kManyRows = 64;

struct TensorParams {
  Panels w;
  const unsigned char* x;  // bf16 [rows, ≥ columns], rows and chunks of eight columns aligned to 16 bytes
  int64_t x_stride;        // elements
  int64_t rows, columns;   // of x: a multiple of 8 columns
  Output out;
  Splits splits;
  int64_t pairs;
};

template <class Format, int kTiles>
struct TensorCore {
  using Params = TensorParams;
  static constexpr int kThreads = kTensorThreads, kMinBlocks = 2;
  static constexpr int kStages = Format::kFloat ? 3 : 4;
  static constexpr int kRecords = kStageColumns / Format::kColumns;  // of a panel in a stage
  static constexpr int kSlotBytes = 32 * Format::kLaneBytes;
  static constexpr int kRowsBytes = kTiles * 8 * kStageColumns * 2;
  static constexpr int kStageBytes = kRowsBytes + kTensorWarps * 2 * kRecords * kSlotBytes;
  static constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes + 16;
  using Share = typename Format::Share;

  static LAPIDARY_DEVICE int chunk_at(int row, int chunk) { return row * 128 + (chunk ^ (row & 1) * 4) * 16; }
  static LAPIDARY_DEVICE unsigned char* slot(unsigned char* stage, int panel, int record) {
    return stage + kRowsBytes + ((dev::warp_index() * 2 + panel) * kRecords + record) * kSlotBytes;
  }

  static LAPIDARY_DEVICE void load_stage(const Params& p, int64_t pair, int64_t first_row, int index,
                                         unsigned char* stage) {
#pragma unroll
    for (int i = dev::thread_index(); i < kTiles * 64; i += kThreads) {
      const int row = i / 8, chunk = i % 8;
      const int64_t column = int64_t(index) * kStageColumns + chunk * 8;
      const bool valid = first_row + row < p.rows && column < p.columns;
      const unsigned char* from = p.x + (valid ? ((first_row + row) * p.x_stride + column) * 2 : 0);
      dev::copy_async_16(stage + chunk_at(row, chunk), from, valid);
    }
    for (int i = 0; i < 2; ++i) {
      for (int sub = 0; sub < kRecords; ++sub) {
        const int record = index * kRecords + sub;
        const bool valid = 2 * pair + i < p.w.panels && record < p.w.records;
        const unsigned char* panel = p.w.data + (valid ? (2 * pair + i) * p.w.panel_bytes : 0);
        Format::stage(p.w, panel, valid ? record : 0, dev::lane(), valid, slot(stage, i, sub));
      }
    }
  }

  static LAPIDARY_DEVICE void multiply_stage(const Params& p, unsigned char* stage, const GroupScales (&ends)[2],
                                             float (&sums)[2][kTiles][4]) {
    const int lane = dev::lane(), g = lane / 4, t = lane % 4;
    Share share[2];
    if constexpr (kRecords == 1) {
      for (int i = 0; i < 2; ++i) Format::unstage(slot(stage, i, 0), lane, share[i]);
    }
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      if constexpr (kRecords == 2) {
        for (int i = 0; i < 2; ++i) Format::unstage(slot(stage, i, group), lane, share[i]);
      }
      dev::Words4 x[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        x[tile] = dev::load_shared(reinterpret_cast<const dev::Words4*>(stage + chunk_at(tile * 8 + g, group * 4 + t)));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const GroupScales scales =
            Format::scheme == ScaleScheme::row ? ends[i] : Format::scales(share[i], group, lane, p.w.bf16_scales);
        uint32_t w[2][4];
        for (int step = 0; step < 2; ++step) {
          for (int word = 0; word < 4; ++word)
            w[step][word] = Format::operand(share[i], scales, group, word % 2, 2 * step + word / 2);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          float(&sum)[4] = sums[i][tile];
          if constexpr (Format::kScaleAfter == ScaleAfter::group) {
            float part[4] = {0, 0, 0, 0};
            dev::mma_bf16(part, w[0], x[tile].word[0], x[tile].word[1]);
            dev::mma_bf16(part, w[1], x[tile].word[2], x[tile].word[3]);
            for (int c = 0; c < 4; ++c) sum[c] = dev::fma(part[c], scales.first[c / 2], sum[c]);
          } else {
            dev::mma_bf16(sum, w[0], x[tile].word[0], x[tile].word[1]);
            dev::mma_bf16(sum, w[1], x[tile].word[2], x[tile].word[3]);
          }
        }
      }
    }
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int64_t pair = int64_t(dev::block_index_x()) * kTensorWarps + dev::warp_index();
    const int64_t first_row = int64_t(dev::block_index_y()) * kTiles * 8;
    const int split = dev::block_index_z();
    const int stages = (p.w.records + kRecords - 1) / kRecords;
    const int begin = int(int64_t(stages) * split / p.splits.count),
              end = int(int64_t(stages) * (split + 1) / p.splits.count);

    GroupScales ends[2] = {};
    for (int i = 0; i < 2; ++i) {
      if (Format::kScaleAfter == ScaleAfter::end && 2 * pair + i < p.w.panels) {
        ends[i] = end_scales<Format>(p.w.data + (2 * pair + i) * p.w.panel_bytes, dev::lane());
      }
    }
    float sums[2][kTiles][4] = {};
    for (int i = 0; i < kStages - 1; ++i) {
      if (begin + i < end) load_stage(p, pair, first_row, begin + i, shared + i * kStageBytes);
      dev::copy_async_commit();  // an empty group counts, so that the wait below is the same at the end
    }
#pragma unroll 1
    for (int index = begin; index < end; ++index) {
      dev::copy_async_wait<kStages - 2>();
      dev::block_barrier();  // all of x has landed, and everybody is done with the stage that the next copies overwrite
      const int ahead = index + kStages - 1;
      if (ahead < end) load_stage(p, pair, first_row, ahead, shared + (ahead - begin) % kStages * kStageBytes);
      dev::copy_async_commit();
      multiply_stage(p, shared + (index - begin) % kStages * kStageBytes, ends, sums);
    }
    if constexpr (Format::kScaleAfter == ScaleAfter::end) {
      for (int i = 0; i < 2; ++i) {
        for (int tile = 0; tile < kTiles; ++tile) {
          for (int c = 0; c < 4; ++c) sums[i][tile][c] = unfused_mul(sums[i][tile][c], ends[i].first[c / 2]);
        }
      }
    }
    finish(p, first_row, split, sums, shared);
  }

  // By way of shared memory, so that outputs are written in runs, and the epilogue is compiled once: [row of x][128 rows of W].
  static constexpr int kOutputs = kTensorWarps * 32, kOutputStride = kOutputs + 4;
  static_assert(kTiles * 8 * kOutputStride * 4 <= kStages * kStageBytes);

  static LAPIDARY_DEVICE void finish(const Params& p, int64_t first_row, int split, const float (&sums)[2][kTiles][4],
                                     unsigned char* shared) {
    float* const outputs = reinterpret_cast<float*>(shared);
    uint32_t* const flag = reinterpret_cast<uint32_t*>(shared + kStages * kStageBytes);
    const int g = dev::lane() / 4, t = dev::lane() % 4;
    dev::block_barrier();  // nobody reads a stage any more, and no copy is on its way: the last groups were empty
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float* to =
              outputs + (tile * 8 + 2 * t + c % 2) * kOutputStride + dev::warp_index() * 32 + 16 * i + g + c / 2 * 8;
          dev::store_shared(to, sums[i][tile][c]);
        }
      }
    }
    dev::block_barrier();
    const int64_t width = p.pairs * 32, stride = p.rows * width,
                  first_pair = int64_t(dev::block_index_x()) * kTensorWarps;
    const int rows = int(p.rows - first_row < kTiles * 8 ? p.rows - first_row : kTiles * 8);
    // Rows r and r + 16 of a pair of panels are one output where geglu joins them.
    const auto for_each = [&](const auto& body) {
#pragma unroll 1
      for (int i = dev::thread_index(); i < rows * kTensorWarps * 16; i += kThreads) {
        const int row = i / (kTensorWarps * 16), warp = i / 16 % kTensorWarps, r = i % 16;
        if (first_pair + warp < p.pairs)
          body(first_row + row, first_pair + warp, r, outputs + row * kOutputStride + warp * 32 + r);
      }
    };
    if (p.splits.count == 1) {
      return for_each([&](int64_t row, int64_t pair, int r, const float* sum) {
        p.out.finish(row, pair, r, dev::load_shared(sum), dev::load_shared(sum + 16));
      });
    }
    for_each([&](int64_t row, int64_t pair, int r, const float* sum) {
      float* to = p.splits.partial + split * stride + row * width + pair * 32 + r;
      dev::store(to, dev::load_shared(sum));
      dev::store(to + 16, dev::load_shared(sum + 16));
    });
    if (!p.splits.last(dev::block_index_x() + dev::grid_size_x() * dev::block_index_y(), flag)) return;
    for_each([&](int64_t row, int64_t pair, int r, const float*) {
      const int64_t at = row * width + pair * 32 + r;
      p.out.finish(row, pair, r, p.splits.total(at, stride), p.splits.total(at + 16, stride));
    });
  }
};

// Blocks that fill 132 multiprocessors twice, while each still has some stages to work on.
static constexpr int64_t kTensorBlocksWanted = 256;
static constexpr int kSmallestTensorSplit = 4, kMostTensorSplits = 8;

static inline int plan_tensor_splits(const Panels& w, int64_t rows) {
  const int64_t blocks = divide_up((w.panels + 1) / 2, kTensorWarps);
  const int stages =
      int(divide_up(int64_t(w.records) * (w.codes == CodeWidth::none ? 32 : kRecordColumns), kStageColumns));
  int splits = 1;
  while (rows <= kManyRows && splits < kMostTensorSplits && blocks * splits < kTensorBlocksWanted &&
         stages / (2 * splits) >= kSmallestTensorSplit) {
    splits *= 2;
  }
  return splits;
}

// ── x in bf16 ───────────────────────────────────────────────────────────────────────────────────────────────────────

struct RoundRowsParams {
  Rows x;
  unsigned char* out;  // bf16 [rows, columns], columns a multiple of 8
  int64_t columns;
};

// Rounds x to bf16, zeros past its columns: eight elements a thread. Bytes: x once, half of them written, which L2 then holds.
struct RoundRows {
  using Params = RoundRowsParams;
  static constexpr int kThreads = 256, kMinBlocks = 4;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t chunks = p.columns / 8, index = int64_t(dev::block_index_x()) * kThreads + dev::thread_index();
    if (index >= p.x.rows * chunks) return;
    const int64_t row = index / chunks, k = index % chunks * 8;
    float v[8];
    p.x.eight(row, k, v);
    dev::Words4 words;
    for (int i = 0; i < 4; ++i) words.word[i] = dev::pack_bf16(v[2 * i], v[2 * i + 1]);
    dev::store(reinterpret_cast<dev::Words4*>(p.out + (row * p.columns + k) * 2), words);
  }
};

}  // namespace lapidary::cuda::matmul
