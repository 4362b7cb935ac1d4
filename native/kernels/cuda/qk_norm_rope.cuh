// qk_norm_rope: QK-norm (Dehghani et al. 2023, arXiv 2302.05442), rotary position embedding (Su et al. 2021, arXiv 2104.09864, in the
// half-split form) and KV-cache write in one pass. Formula and contract: ops/qk_norm_rope.h.
//
// Algorithm
//   A block takes eight rows (heads of q, k and v) of one token: first all its threads make the token's table of cosines and sines, in
//   double precision as the CPU's kernel does it, one pair of elements a thread for heads of 256; then each warp takes two rows:
//
//     pass 1   x ───────────────► Σx²                        32 partial sums, folded by shuffles
//     pass 2   x[0 … p) ──► y ─┬─ rotate ─► z[0 … p)         p = rotated pairs, four at a time per lane
//              x[h … h+p) ► y ─┘        └─► z[h … h+p)       h = headDim / 2
//              the rest ──► y ────────────► z
//
//   An i8 row goes through pass 2 twice: for its largest magnitude, and to be written.
//
// Cost: a row is read twice or three times, later ones from L1, and written once; 60 double-precision operations per pair of each block.
// Four elements are one access of 8 or 16 bytes where rows are aligned to it.
#pragma once
#include "kernels/cuda/launch.h"

namespace lapidary::cuda {

// Rows of one tensor, or of a cache: strides in elements.
struct HeadRows {
  unsigned char* data;
  int64_t outer, head, slot;  // outer: token, or page
  DType dtype;
  bool aligned;  // groups of four elements of every row lie on their own size
};

// What one of q, k and v becomes.
struct HeadJob {
  HeadRows from, to;
  float* scales;  // of an i8 cache
  int64_t scale_page, scale_head, scale_slot;
  const unsigned char* weight;  // may be null
  DType weight_dtype;
  bool weight_aligned;
  bool norm;
  int pairs;  // rotated
};

struct QkNormRopeArguments {
  HeadJob job[3];  // q, k, v
  const int32_t *positions, *slots;
  int64_t tokens, pages;
  int query_heads, kv_heads, head_dim, page_tokens;
  int rotated_pairs;
  bool cached;
  double frequency_step, frequency_stride, position_scale;
  float eps, weight_bias;
  ErrorReporter errors;
};

struct QkNormRope {
  using Params = QkNormRopeArguments;
  static constexpr int kThreads = 128, kMinBlocks = 8, kWarps = kThreads / 32;
  static constexpr int kRowsPerBlock = 8;
  enum Message : uint32_t { kPositions, kSlots };

  static size_t shared_bytes(const Params& p) { return size_t(p.rotated_pairs) * 8; }
  LAPIDARY_HOST_DEVICE static int64_t row_groups(const Params& p) {
    return (p.query_heads + 2 * int64_t(p.kv_heads) + kRowsPerBlock - 1) / kRowsPerBlock;
  }

  // ── elements ────────────────────────────────────────────────────────────────────────────────────────────────────
  LAPIDARY_DEVICE static float read(const unsigned char* row, DType dtype, int i) {
    if (dtype == DType::f32) return dev::load(reinterpret_cast<const float*>(row) + i);
    const uint16_t bits = dev::load(reinterpret_cast<const uint16_t*>(row) + i);
    return dtype == DType::bf16 ? dev::to_float(dev::Bf16{bits}) : dev::to_float(dev::F16{bits});
  }

  // Elements i … i + 3; zeros from `end` on.
  LAPIDARY_DEVICE static void read_four(const unsigned char* row, DType dtype, bool aligned, int i, int end,
                                        float (&x)[4]) {
    if (!aligned || i % 4 != 0 || i + 4 > end) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = i + e < end ? read(row, dtype, i + e) : 0.f;
    } else if (dtype == DType::f32) {
      const dev::Words4 words = dev::load(reinterpret_cast<const dev::Words4*>(row + 4 * i));
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] = dev::bit_cast<float>(words.word[e]);
    } else {
      const dev::Words2 words = dev::load(reinterpret_cast<const dev::Words2*>(row + 2 * i));
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        x[2 * e] = dtype == DType::bf16 ? dev::low_bf16(words.word[e]) : dev::low_f16(words.word[e]);
        x[2 * e + 1] = dtype == DType::bf16 ? dev::high_bf16(words.word[e]) : dev::high_f16(words.word[e]);
      }
    }
  }

  LAPIDARY_DEVICE static uint16_t half_bits(DType dtype, float x) {
    return dtype == DType::bf16 ? dev::to_bf16(x).bits : dev::to_f16(x).bits;
  }
  LAPIDARY_DEVICE static void write_four(unsigned char* row, DType dtype, bool aligned, int i, int end,
                                         const float (&x)[4]) {
    if (!aligned || i % 4 != 0 || i + 4 > end) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e >= end) continue;
        if (dtype == DType::f32) {
          dev::store(reinterpret_cast<float*>(row) + i + e, x[e]);
        } else {
          dev::store(reinterpret_cast<uint16_t*>(row) + i + e, half_bits(dtype, x[e]));
        }
      }
    } else if (dtype == DType::f32) {
      dev::Words4 words;
#pragma unroll
      for (int e = 0; e < 4; ++e) words.word[e] = dev::bit_cast<uint32_t>(x[e]);
      dev::store(reinterpret_cast<dev::Words4*>(row + 4 * i), words);
    } else {
      dev::Words2 words;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        words.word[e] =
            dtype == DType::bf16 ? dev::pack_bf16(x[2 * e], x[2 * e + 1]) : dev::pack_f16(x[2 * e], x[2 * e + 1]);
      dev::store(reinterpret_cast<dev::Words2*>(row + 2 * i), words);
    }
  }

  // ── the token's table ───────────────────────────────────────────────────────────────────────────────────────────
  // step^i, as a product of at most 15 steps and of i / 16 strides, so that rounding errors stay below 64 · 2⁻⁵³.
  LAPIDARY_DEVICE static double frequency(const Params& p, int i) {
    double value = 1;
    for (int block = 0; block < i / 16; ++block) value *= p.frequency_stride;
    for (int step = 0; step < i % 16; ++step) value *= p.frequency_step;
    return value;
  }

  // As kernels/cpu/qk_norm_rope.inl.h: Cody and Waite's reduction, Taylor polynomials on |r| ≤ π/4, the quadrant on bits.
  LAPIDARY_DEVICE static void rotation(double angle, float& cosine, float& sine) {
    constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
    constexpr double kHalfPiHigh = 0x1.921fb544p0, kHalfPiLow = 0x1.0b4611a626331p-34;
    constexpr double kRounder = 0x1.8p52;  // adding it rounds to an integer, left in the low bits of the sum
    const double shifted = angle * kTwoOverPi + kRounder;
    const double quarters = shifted - kRounder;
    const double r = (angle - quarters * kHalfPiHigh) - quarters * kHalfPiLow;
    const double z = r * r;
    const double s9 = 1.0 / 362880 + z * (-1.0 / 39916800), c8 = 1.0 / 40320 + z * (-1.0 / 3628800);
    const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * s9)));
    const double c = 1 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * c8)));
    const uint32_t quadrant = uint32_t(dev::bit_cast<uint64_t>(shifted));
    const double cosine_size = quadrant & 1 ? s : c, sine_size = quadrant & 1 ? c : s;
    cosine = float((quadrant + 1) & 2 ? -cosine_size : cosine_size);
    sine = float(quadrant & 2 ? -sine_size : sine_size);
  }

  LAPIDARY_DEVICE static void fill_table(const Params& p, double position, float* cosines, float* sines) {
    for (int i = dev::thread_index(); i < p.rotated_pairs; i += kThreads) {
      float cosine, sine;
      rotation(position * frequency(p, i), cosine, sine);
      dev::store_shared(cosines + i, cosine);
      dev::store_shared(sines + i, sine);
    }
  }

  // ── one row, by one warp ────────────────────────────────────────────────────────────────────────────────────────
  LAPIDARY_DEVICE static float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x += dev::shuffle_xor(x, mask);
    return x;
  }

  LAPIDARY_DEVICE static float inverse_rms(const HeadJob& job, const unsigned char* from, int head_dim, float eps) {
    float sum = 0;
    for (int i = 4 * dev::lane(); i < head_dim; i += 128) {
      float x[4];
      read_four(from, job.from.dtype, job.from.aligned, i, head_dim, x);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum = dev::fma(x[e], x[e], sum);
    }
    return dev::div(1.f, dev::sqrt(dev::div(warp_sum(sum), float(head_dim)) + eps));
  }

  struct Row {
    const unsigned char* from;
    float scale;  // 1 / rms, or 1
    const float *cosines, *sines;
  };

  LAPIDARY_DEVICE static void normalised(const Params& p, const HeadJob& job, const Row& row, int i, int end,
                                         float (&y)[4]) {
    read_four(row.from, job.from.dtype, job.from.aligned, i, end, y);
    if (!job.norm) return;
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] *= row.scale;
    if (job.weight == nullptr) return;
    float weight[4];
    read_four(job.weight, job.weight_dtype, job.weight_aligned, i, end, weight);
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] *= p.weight_bias + weight[e];
  }

  // Calls sink(i, end, z[i … i + 3]) for all elements of the row; those from `end` on are not its.
  template <class Sink>
  LAPIDARY_DEVICE static void transform(const Params& p, const HeadJob& job, const Row& row, const Sink& sink) {
    const int half = p.head_dim / 2;
    for (int i = 4 * dev::lane(); i < job.pairs; i += 128) {
      float low[4], high[4];
      normalised(p, job, row, i, job.pairs, low);
      normalised(p, job, row, half + i, half + job.pairs, high);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool inside = i + e < job.pairs;
        const float cosine = inside ? dev::load_shared(row.cosines + i + e) : 1.f;
        const float sine = inside ? dev::load_shared(row.sines + i + e) : 0.f;
        const float x = low[e];
        low[e] = dev::fma(-high[e], sine, x * cosine);
        high[e] = dev::fma(x, sine, high[e] * cosine);
      }
      sink(i, job.pairs, low);
      sink(half + i, half + job.pairs, high);
    }
    keep(p, job, row, job.pairs, job.pairs > 0 ? half : p.head_dim, sink);
    if (job.pairs > 0) keep(p, job, row, half + job.pairs, p.head_dim, sink);
  }

  template <class Sink>
  LAPIDARY_DEVICE static void keep(const Params& p, const HeadJob& job, const Row& row, int begin, int end,
                                   const Sink& sink) {
    for (int i = begin + 4 * dev::lane(); i < end; i += 128) {
      float y[4];
      normalised(p, job, row, i, end, y);
      sink(i, end, y);
    }
  }

  LAPIDARY_DEVICE static void quantise(const Params& p, const HeadJob& job, const Row& row, int8_t* to, float* scale) {
    constexpr float kSmallest = 0x1p-100f;  // below it 127 / largest may overflow
    float largest = 0, poison = 0;  // multiplying by zero finds what is not finite, which a maximum may pass over
    transform(p, job, row, [&](int i, int end, const float(&z)[4]) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e >= end) continue;
        largest = dev::max(largest, dev::abs(z[e]));
        poison = dev::fma(z[e], 0.f, poison);
      }
    });
    for (int mask = 16; mask > 0; mask /= 2) largest = dev::max(largest, dev::shuffle_xor(largest, mask));
    const bool finite = warp_sum(poison) == 0, empty = !finite || largest < kSmallest;
    const float inverse = empty ? 0.f : dev::div(127.f, largest);
    if (dev::lane() == 0) {
      dev::store(scale, !finite ? dev::bit_cast<float>(0x7fc00000u) : empty ? 0.f : dev::div(largest, 127.f));
    }
    transform(p, job, row, [&](int i, int end, const float(&z)[4]) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e < end) dev::store(to + i + e, int8_t(empty ? 0 : dev::round_to_int(z[e] * inverse)));
      }
    });
  }

  LAPIDARY_DEVICE static void run_row(const Params& p, int64_t token, int index, int64_t slot, bool blank,
                                      const float* cosines, const float* sines) {
    const int kind = index < p.query_heads ? 0 : index < p.query_heads + p.kv_heads ? 1 : 2;
    const int head = index - (kind > 0 ? p.query_heads : 0) - (kind > 1 ? p.kv_heads : 0);
    const HeadJob& job = p.job[kind];
    const bool cached = kind > 0 && p.cached;
    if (cached && (slot < 0 || blank)) return;
    const int64_t page = cached ? slot / p.page_tokens : token, offset = cached ? slot - page * p.page_tokens : 0;
    const int bytes = job.to.dtype == DType::f32 ? 4 : job.to.dtype == DType::i8 ? 1 : 2;
    unsigned char* to = job.to.data + (page * job.to.outer + head * job.to.head + offset * job.to.slot) * bytes;
    if (blank) {
      const float zeros[4] = {};
      for (int i = 4 * dev::lane(); i < p.head_dim; i += 128)
        write_four(to, job.to.dtype, job.to.aligned, i, p.head_dim, zeros);
      return;
    }
    Row row;
    row.from = job.from.data + (token * job.from.outer + head * job.from.head) * (job.from.dtype == DType::f32 ? 4 : 2);
    row.scale = job.norm ? inverse_rms(job, row.from, p.head_dim, p.eps) : 1.f;
    row.cosines = cosines;
    row.sines = sines;
    if (job.to.dtype == DType::i8) {
      float* scale = job.scales + page * job.scale_page + head * job.scale_head + offset * job.scale_slot;
      return quantise(p, job, row, reinterpret_cast<int8_t*>(to), scale);
    }
    transform(p, job, row,
              [&](int i, int end, const float(&z)[4]) { write_four(to, job.to.dtype, job.to.aligned, i, end, z); });
  }

  // ── a block's rows ──────────────────────────────────────────────────────────────────────────────────────────────
  LAPIDARY_DEVICE static void run(const Params& p, unsigned char* shared) {
    float* cosines = reinterpret_cast<float*>(shared);
    float* sines = cosines + p.rotated_pairs;
    const int64_t groups = row_groups(p);
    const int rows = p.query_heads + 2 * p.kv_heads;
    for (int64_t item = dev::block_index_x(); item < p.tokens * groups; item += dev::grid_size_x()) {
      const int64_t token = item / groups;
      const int first = int(item % groups) * kRowsPerBlock;
      const bool reports = first == 0 && dev::thread_index() == 0;
      const int position = p.rotated_pairs > 0 ? dev::load(p.positions + token) : 0;
      const bool blank = position < 0;
      if (blank && reports) p.errors.report(kPositions, position, token);
      int64_t slot = p.cached ? dev::load(p.slots + token) : -1;
      if (slot < -1 || slot >= p.pages * p.page_tokens) {
        if (p.cached && reports) p.errors.report(kSlots, slot, token);
        slot = -1;
      }
      if (!blank) fill_table(p, double(position) * p.position_scale, cosines, sines);
      dev::block_barrier();
      const int end = first + kRowsPerBlock < rows ? first + kRowsPerBlock : rows;
      for (int row = first + dev::warp_index(); row < end; row += kWarps)
        run_row(p, token, row, slot, blank, cosines, sines);
      dev::block_barrier();
    }
  }
};

}  // namespace lapidary::cuda
