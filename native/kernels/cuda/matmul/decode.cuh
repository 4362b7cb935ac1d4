// decode.cuh: matmul for up to 8 rows of x: W is read once, as a stream, and nothing else may take longer.
//
// Algorithm. A warp multiplies a pair of panels, 32 rows of W, and reads 16 bytes per lane and panel at a time, one record ahead. A
// lane's bytes are eight columns of two rows (weights/fragment_panels.cuh), whose products it sums by itself; lanes with the same rows
// are added at the end, then `parts` warps of a block that share a pair, then `splits` blocks (Splits). x lies in shared memory:
//
//   integer formats   rounded to int8 per 32 columns, in the order of a lane's codes: four products are one dot4_i8
//   float formats     f32
//
//   block: 8 warps = 8 / parts pairs × parts       part i of a chunk of K: records [n·i / parts, n·(i + 1) / parts)
//
// parts, splits and the chunk depend on the shape of W alone, so that a row of y has the same bits whatever the number of rows.
//
// What is rounded (ops/matmul.h, "int8" and "exact"): integer sums of a lane's eight columns are exact; the group's scales are applied
// to them in f32, one multiplication and one fused addition (with a minimum or a zero point: two) per group and lane, in increasing
// k. Float weights are exact, products are fused into two chains of four per 32 columns. Then 2 additions of lanes, at most 7 of parts
// and 15 of splits. That is fewer roundings on any path than the CPU's K / 32 + 6, or K / 2 + 2 for floats, as a part has at least
// four records.
//
// Bytes: W once. Operations per weight for one row: 1/4 dot4_i8 and about 1/4 of integer operations for four bits.
#pragma once
#include "kernels/cuda/matmul/problem.cuh"

namespace lapidary::cuda::matmul {

static constexpr int kDecodeRows = 8;
// Rows of a launch: more come in several, one after another. 256 pairs at most have splits, so that kCounters tickets are enough.
static constexpr int64_t kRowsAtOnce = 512;
static constexpr int kDecodeThreads = 256, kDecodeWarps = kDecodeThreads / dev::kWarp;
static constexpr float kSmallestMaximum = 0x1p-120f;  // 127 / max stays finite; smaller groups count as zero

struct DecodeParams {
  Panels w;
  Rows x;
  Output out;
  Splits splits;
  int parts;          // warps that share a pair: 1, 2, 4 or 8
  int chunk_records;  // of K in shared memory at a time
  int64_t pairs;
  int64_t first_row;  // of x, in this launch
};

// x of one chunk in shared memory, kRows rows.
template <class Format, int kRows>
struct DecodeRows {
  static constexpr int kGroups = Format::kColumns / 32;
  // Of a record: rounded, [group][row][t] of 8 codes, then [group][row] scales; or [row][32] f32.
  static constexpr int kRecordBytes = Format::kFloat ? kRows * 128 : kGroups * kRows * 36;

  unsigned char* memory;
  int records;

  LAPIDARY_DEVICE dev::Words2* codes(int group, int row) const {
    return reinterpret_cast<dev::Words2*>(memory) + (group * kRows + row) * 4;
  }
  LAPIDARY_DEVICE float* scale(int group, int row) const {
    return reinterpret_cast<float*>(memory + records * kGroups * kRows * 32) + group * kRows + row;
  }
  LAPIDARY_DEVICE float* floats(int group, int row) const {
    return reinterpret_cast<float*>(memory) + (group * kRows + row) * 32;
  }

  // Four lanes round or copy one row's group of 32 columns; k0: the chunk's first column.
  LAPIDARY_DEVICE void fill(const Rows& x, int64_t first_row, int64_t k0) const {
    const int items = records * kGroups * kRows, t = dev::thread_index() % 4;
#pragma unroll 1
    for (int base = 0; base < items;
         base += kDecodeThreads / 4) {  // the same number of times for every thread: it shuffles
      const int item = base + dev::thread_index() / 4;
      const int group = item / kRows, row = item % kRows;
      float v[8] = {};
      if (item < items) x.eight(first_row + row, k0 + group * 32 + 8 * t, v);
      if constexpr (Format::kFloat) {
        if (item < items) {
          dev::Words4 words[2];
          for (int i = 0; i < 8; ++i) words[i / 4].word[i % 4] = dev::bit_cast<uint32_t>(v[i]);
          dev::Words4* to = reinterpret_cast<dev::Words4*>(floats(group, row) + 8 * t);
          dev::store_shared(to, words[0]);
          dev::store_shared(to + 1, words[1]);
        }
      } else {
        float largest = 0, poison = 0;
        for (int i = 0; i < 8; ++i) {
          largest = dev::max(largest, dev::abs(v[i]));
          poison = dev::fma(v[i], 0.0f, poison);  // NaN where a value is infinite or NaN
        }
        for (int mask = 1; mask <= 2; mask *= 2) {
          largest = dev::max(largest, dev::shuffle_xor(largest, mask));
          poison = poison + dev::shuffle_xor(poison, mask);
        }
        const bool nonzero = largest > kSmallestMaximum;
        const float inverse = nonzero ? dev::div(127.0f, largest) : 0.0f;
        dev::Words2 codes_of_lane = {};
        for (int i = 0; i < 8; ++i) {
          // The bounds matter where a value is infinite or NaN only: no conversion may see it.
          const float scaled = dev::min(dev::max(unfused_mul(v[column_of_byte(i)], inverse), -127.0f), 127.0f);
          codes_of_lane.word[i / 4] |= (uint32_t(dev::round_to_int(scaled)) & 255) << (8 * (i % 4));
        }
        if (item < items) {
          dev::store_shared(codes(group, row) + t, codes_of_lane);
          if (t == 0)
            dev::store_shared(scale(group, row), poison != 0 ? poison : nonzero ? dev::div(largest, 127.0f) : 0.0f);
        }
      }
    }
  }
};

template <class Format, int kRows>
struct Decode {
  using Params = DecodeParams;
  static constexpr int kThreads = kDecodeThreads, kMinBlocks = kRows == 1 ? 3 : kRows == 8 && Format::kWide ? 1 : 2;
  using X = DecodeRows<Format, kRows>;
  using Share = typename Format::Share;

  static size_t shared_bytes(const Params& p) {
    return size_t(X::kRecordBytes) * size_t(p.chunk_records) + kDecodeWarps * 32 * kRows * sizeof(float) + 16;
  }

  // [panel of the pair][row g or g + 8][row of x], and Σ of the codes of x times their scale, which zero points multiply.
  struct Sums {
    float y[2][2][kRows];
    float codes[kRows];
  };

  static LAPIDARY_DEVICE void multiply_codes(const X& x, const Share (&w)[2], int first_group, int lane, bool bf16,
                                             Sums& sums) {
    if constexpr (!Format::kFloat) {
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        uint32_t even[2][2], odd[2][2];
        GroupScales scales[2];
        for (int p = 0; p < 2; ++p) {
          scales[p] = Format::scales(w[p], group, lane, bf16);
          for (int half = 0; half < 2; ++half) Format::bytes(w[p], group, half, even[p][half], odd[p][half]);
        }
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          const dev::Words2 q = dev::load_shared(x.codes(first_group + group, m) + lane % 4);
          const float xs = dev::load_shared(x.scale(first_group + group, m));
          int32_t start = kIntegerBias;
          if constexpr (Format::kZero != 0) start = dot(kMinusZero, kMinusZero, q, start);
          float sum = 0;
          if constexpr (Format::kHasMinimum || Format::scheme == ScaleScheme::group_zero ||
                        Format::scheme == ScaleScheme::row) {
            sum = to_float(dot(0x01010101u, 0x01010101u, q, kIntegerBias));
          }
          if constexpr (Format::scheme == ScaleScheme::row) sums.codes[m] = dev::fma(sum, xs, sums.codes[m]);
          for (int p = 0; p < 2; ++p) {
            for (int half = 0; half < 2; ++half) {
              const float f = to_float(dot(even[p][half], odd[p][half], q, start));
              const float s = scales[p].first[half], second = scales[p].second[half];
              float& y = sums.y[p][half][m];
              if constexpr (Format::scheme == ScaleScheme::row)
                y = dev::fma(f, xs, y);
              else if constexpr (Format::scheme == ScaleScheme::group_zero)
                y = dev::fma(unfused_mul(dev::fma(-second, sum, f), s), xs, y);
              else if constexpr (Format::kHasMinimum)
                y = dev::fma(dev::fma(f, s, unfused_mul(sum, second)), xs, y);
              else
                y = dev::fma(unfused_mul(f, s), xs, y);
            }
          }
        }
      }
    }
  }

  static LAPIDARY_DEVICE void multiply_floats(const X& x, const Share (&w)[2], int group, int lane, Sums& sums) {
    if constexpr (Format::kFloat) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        float weights[2][8];
        for (int half = 0; half < 2; ++half) Format::values(w[p], half, weights[half]);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          const auto* at = reinterpret_cast<const dev::Words4*>(x.floats(group, m) + lane % 4 * 8);
          const dev::Words4 v[2] = {dev::load_shared(at), dev::load_shared(at + 1)};
          for (int half = 0; half < 2; ++half) {
            float chain[2] = {0, 0};
            for (int i = 0; i < 8; ++i)
              chain[i / 4] = dev::fma(dev::bit_cast<float>(v[i / 4].word[i % 4]), weights[half][i], chain[i / 4]);
            sums.y[p][half][m] = sums.y[p][half][m] + (chain[0] + chain[1]);
          }
        }
      }
    }
  }

  // A small integer as an f32 without a conversion: these bits are 1.5 · 2²³, whose last place is 1.
  static constexpr int32_t kIntegerBias = 0x4b400000;
  static constexpr uint32_t kMinusZero = [] {
    if constexpr (Format::kFloat)
      return 0u;
    else
      return uint32_t(uint8_t(-Format::kZero)) * 0x01010101u;
  }();
  static LAPIDARY_DEVICE float to_float(int32_t biased) { return dev::bit_cast<float>(biased) - 12582912.0f; }
  static LAPIDARY_DEVICE int32_t dot(uint32_t even, uint32_t odd, const dev::Words2& q, int32_t sum) {
    return dev::dot4_i8(even, q.word[0], dev::dot4_i8(odd, q.word[1], sum));
  }

  // The records [begin, end) of the pair's panels, the first of which is in `next`; x.memory begins with record `origin`.
  static LAPIDARY_DEVICE void multiply(const Params& p, const X& x, const unsigned char* const (&panel)[2], int begin,
                                       int end, int origin, Share (&next)[2], Sums& sums) {
    const int lane = dev::lane();
#pragma unroll 1
    for (int record = begin; record < end; ++record) {
      const Share now[2] = {next[0], next[1]};
      if (record + 1 < end) {
        for (int i = 0; i < 2; ++i) Format::load(p.w, panel[i], record + 1, lane, next[i]);
      }
      const int group = (record - origin) * X::kGroups;
      multiply_codes(x, now, group, lane, p.w.bf16_scales, sums);
      multiply_floats(x, now, group, lane, sums);
    }
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char* shared) {
    const int warp = dev::warp_index(), lane = dev::lane(), part = warp % p.parts;
    const int slots = kDecodeWarps / p.parts;
    const int64_t pair = int64_t(dev::block_index_x()) * slots + warp / p.parts;
    const int64_t first_row = p.first_row + int64_t(dev::block_index_z()) * kRows;
    const int rows = int(p.x.rows - first_row < kRows ? p.x.rows - first_row : kRows);
    const int split = dev::block_index_y();
    const int begin = int(int64_t(p.w.records) * split / p.splits.count);
    const int end = int(int64_t(p.w.records) * (split + 1) / p.splits.count);

    float* const block_sums = reinterpret_cast<float*>(shared);  // [warp][row of x][32]
    uint32_t* const flag = reinterpret_cast<uint32_t*>(block_sums + kDecodeWarps * 32 * kRows);
    X x = {reinterpret_cast<unsigned char*>(flag) + 16, 0};

    const bool active = pair < p.pairs;
    const int64_t second = 2 * pair + 1 < p.w.panels ? 2 * pair + 1 : 2 * pair;
    const unsigned char* const panel[2] = {p.w.data + (active ? 2 * pair : 0) * p.w.panel_bytes,
                                           p.w.data + (active ? second : 0) * p.w.panel_bytes};
    Sums sums = {};
#pragma unroll 1
    for (int origin = begin; origin < end; origin += p.chunk_records) {
      x.records = end - origin < p.chunk_records ? end - origin : p.chunk_records;
      const int from = origin + x.records * part / p.parts, to = origin + x.records * (part + 1) / p.parts;
      Share next[2];
      for (int i = 0; i < 2 && active && from < to; ++i)
        Format::load(p.w, panel[i], from, lane, next[i]);  // beside fill()
      if (origin != begin) dev::block_barrier();           // the chunk before has been read
      x.fill(p.x, first_row, int64_t(origin) * Format::kColumns);
      dev::block_barrier();
      if (active) multiply(p, x, panel, from, to, origin, next, sums);
    }

#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const GroupScales scales = end_scales<Format>(panel[i], lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          float y = add_lanes(sums.y[i][half][m]);
          if constexpr (Format::scheme == ScaleScheme::row) {
            y = unfused_mul(dev::fma(float(Format::kZero) - scales.second[half], add_lanes(sums.codes[m]), y),
                            scales.first[half]);
          } else if constexpr (Format::kScaleAfter == ScaleAfter::end) {
            y = unfused_mul(y, scales.first[half]);
          }
          if (lane % 4 == m % 4)
            dev::store_shared(block_sums + (warp * kRows + m) * 32 + 16 * i + 8 * half + lane / 4, y);
        }
      }
    }
    dev::block_barrier();
    finish(p, block_sums, flag, slots, first_row, rows, split);
  }

  static LAPIDARY_DEVICE int64_t launch_rows(const Params& p) {
    return p.x.rows - p.first_row < kRowsAtOnce ? p.x.rows - p.first_row : kRowsAtOnce;
  }
  static LAPIDARY_DEVICE float add_lanes(float value) {
    value = value + dev::shuffle_xor(value, 1);
    return value + dev::shuffle_xor(value, 2);
  }

  // Sums of the block's warps: of one pair's rows i and i + 16, which are one output where geglu joins them.
  static LAPIDARY_DEVICE void finish(const Params& p, const float* block_sums, uint32_t* flag, int slots,
                                     int64_t first_row, int rows, int split) {
    const int64_t first_pair = int64_t(dev::block_index_x()) * slots, width = p.pairs * 32;
    const auto for_each = [&](const auto& body) {
#pragma unroll 1
      for (int i = dev::thread_index(); i < slots * rows * 16; i += kThreads) {
        const int slot = i / 16 / rows, m = i / 16 % rows;
        if (first_pair + slot < p.pairs) body(slot, m, i % 16);
      }
    };
    const auto sum = [&](int slot, int m, int r) {
      float total = 0;
      for (int part = 0; part < p.parts; ++part) {
        const float value = dev::load_shared(block_sums + ((slot * p.parts + part) * kRows + m) * 32 + r);
        total = part == 0 ? value : total + value;
      }
      return total;
    };
    if (p.splits.count == 1) {
      return for_each([&](int slot, int m, int r) {
        p.out.finish(first_row + m, first_pair + slot, r, sum(slot, m, r), sum(slot, m, r + 16));
      });
    }
    for_each([&](int slot, int m, int r) {
      float* to = p.splits.partial + (split * launch_rows(p) + first_row - p.first_row + m) * width +
                  (first_pair + slot) * 32 + r;
      dev::store(to, sum(slot, m, r));
      dev::store(to + 16, sum(slot, m, r + 16));
    });
    if (!p.splits.last(dev::block_index_x() + dev::grid_size_x() * dev::block_index_z(), flag)) return;
    for_each([&](int slot, int m, int r) {
      const int64_t at = (first_row - p.first_row + m) * width + (first_pair + slot) * 32 + r;
      p.out.finish(first_row + m, first_pair + slot, r, p.splits.total(at, launch_rows(p) * width),
                   p.splits.total(at + 16, launch_rows(p) * width));
    });
  }
};

// ── how the work is shared out: by the shape of W alone ─────────────────────────────────────────────────────────────

struct DecodePlan {
  int parts = 1, splits = 1, chunk_records = 1;
  int64_t pairs = 0;
};

// Warps that keep the memory of the largest GPUs busy: 16 for each of 132 multiprocessors, with 2.3 KB in flight each (int4).
static constexpr int64_t kDecodeWarpsWanted = 2048;
static constexpr int kSmallestPart = 4;  // records
static constexpr int kMostSplits = 16;
static constexpr int kChunkColumns = 4096, kFloatChunkColumns = 1024;  // 37 KB, 32 KB for eight rows

static inline DecodePlan plan_decode(const Panels& w) {
  DecodePlan plan;
  plan.pairs = (w.panels + 1) / 2;
  while (plan.parts < kDecodeWarps && plan.pairs * plan.parts < kDecodeWarpsWanted &&
         w.records / (2 * plan.parts) >= kSmallestPart) {
    plan.parts *= 2;
  }
  while (plan.parts == kDecodeWarps && plan.splits < kMostSplits &&
         plan.pairs * plan.parts * plan.splits < kDecodeWarpsWanted &&
         w.records / (2 * plan.parts * plan.splits) >= kSmallestPart) {
    plan.splits *= 2;
  }
  const bool floats = w.codes == CodeWidth::none;
  plan.chunk_records = floats ? kFloatChunkColumns / 32 : kChunkColumns / kRecordColumns;
  const int longest = (w.records + plan.splits - 1) / plan.splits;
  if (plan.chunk_records > longest) plan.chunk_records = longest;
  return plan;
}

}  // namespace lapidary::cuda::matmul
