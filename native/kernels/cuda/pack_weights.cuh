// pack_weights: W [N, K] as a checkpoint stores it  →  panels in fragment order (ops/weight_panels.h).   stack_weights: panels of
// several matrices in one.
//
// Algorithm: one warp writes one record of one panel, 16 rows × 64 columns (floats: 32). Each lane gathers the codes of its own share,
// two rows × two groups × eight columns, and writes the words that matmul's lane will load; lanes with t = 0 also copy the scales of
// their two rows.
//
//   row r:  [s q…q][s q…q] …   ×16     →     [head | lane 0: 16 bytes | lane 1 | … | lane 31 | planes] …
//
// Contract: ops/pack_weights.h. No weight changes. Padding is written as ops/weight_panels.h says. Loading-time work: an element costs a
// byte load that hits L1. Bytes: one read of W, one write of the panels. FLOPs: none.
#pragma once
#include "kernels/cuda/launch.h"
#include "kernels/cuda/weights/fragment_panels.cuh"
#include "kernels/cuda/weights/pack_source.cuh"

namespace lapidary::cuda {

enum PackMessage : uint32_t { kPackZeros, kPackColumnOrder };

struct PackParams {
  PackSource source;
  Panels panels;  // of the output
  unsigned char* out;
  ErrorReporter error;
};

// One warp's place: a record of a panel, and the lane's two rows and eight columns in it.
struct PackPlace {
  int64_t panel, row;  // row: of the panel's first
  int record, g, t;
  unsigned char *head, *own;
};

LAPIDARY_DEVICE PackPlace pack_place(const Panels& panels, unsigned char* out) {
  PackPlace place;
  const int64_t index = int64_t(dev::block_index_x()) * (dev::block_threads() / dev::kWarp) + dev::warp_index();
  place.panel = index / panels.records;
  place.record = int(index % panels.records);
  place.row = place.panel * kPanelRows;
  place.g = dev::lane() / 4;
  place.t = dev::lane() % 4;
  unsigned char* panel = out + place.panel * panels.panel_bytes;
  place.head = panel + panels.head_offset(place.record);
  place.own = panel + panels.record_offset(place.record);
  return place;
}

template <class T>
LAPIDARY_DEVICE void store_entry(unsigned char* head, int entry, int entries, int row, T value) {
  dev::store(reinterpret_cast<T*>(head) + entry_of(entry, entries, row), value);
}

// ── integer formats ─────────────────────────────────────────────────────────────────────────────────────────────────

template <CodeWidth kWidth, ScaleScheme kScheme>
struct PackCodes {
  using Params = PackParams;
  static constexpr int kThreads = 128, kMinBlocks = 4;

  // The code that stands for weight 0 in absent rows and columns; signed bytes have 0. The table has none: its absent
  // weights have scales of 0.
  static constexpr int kZero = kScheme == ScaleScheme::pair_min || kScheme == ScaleScheme::super_min ? 0
                               : kWidth == CodeWidth::u8 || kWidth == CodeWidth::table4              ? 0
                               : kWidth == CodeWidth::u6                                             ? 32
                               : kWidth == CodeWidth::u5                                             ? 16
                                                                                                     : 8;

  static LAPIDARY_DEVICE int code_of(const PackSource& s, int64_t row, int64_t k, int padding) {
    if (row >= s.rows) return kZero;
    return k < s.columns ? s.code(row, k) : padding;
  }

  // The scales and zero points of a group in entries `first`, `first` + step …
  static LAPIDARY_DEVICE void store_group(const PackParams& p, const PackPlace& place, int r, int64_t g, int entry,
                                          int zero_entry, int entries) {
    const PackSource& s = p.source;
    const int64_t row = place.row + r;
    const bool real = row < s.rows && g * s.group < s.columns;
    store_entry<uint16_t>(place.head, entry, entries, r,
                          real ? uint16_t(stored::half_at(s.scale_of(row, g))) : uint16_t(0));
    if (zero_entry < 0) return;
    int corrupt = 0;
    const float zero = float(real ? s.zero_of(row, g, corrupt) : 8);
    if (corrupt != 0) p.error.report(kPackZeros, corrupt, row);
    store_entry<uint16_t>(place.head, zero_entry, entries, r,
                          s.scale_dtype == DType::bf16 ? dev::to_bf16(zero).bits : dev::to_f16(zero).bits);
  }

  // Scales of row r of the panel: the block's head where the record is its first, and the record's sub-scales.
  static LAPIDARY_DEVICE void store_scales(const PackParams& p, const PackPlace& place, int r, bool first) {
    const PackSource& s = p.source;
    const int64_t row = place.row + r;
    const bool real = row < s.rows;
    if constexpr (kScheme == ScaleScheme::pair || kScheme == ScaleScheme::pair_min) {
      for (int h = 0; h < 2; ++h) {
        const int64_t block = 2 * int64_t(place.record) + h;
        if (s.format != WeightFormat::stored) {
          store_group(p, place, r, block, h, -1, 2);
          continue;
        }
        constexpr int kEntries = kScheme == ScaleScheme::pair ? 2 : 4;
        const bool present = real && block * 32 < s.columns;
        const unsigned char* from = s.block(row, block);
        store_entry<uint16_t>(place.head, h, kEntries, r, present ? uint16_t(stored::half_at(from)) : uint16_t(0));
        if constexpr (kScheme == ScaleScheme::pair_min) {
          store_entry<uint16_t>(place.head, 2 + h, kEntries, r,
                                present ? uint16_t(stored::half_at(from + 2)) : uint16_t(0));
        }
      }
    }
    if constexpr (kScheme == ScaleScheme::group_zero) {
      if (s.group == 32) {
        for (int h = 0; h < 2; ++h) store_group(p, place, r, 2 * int64_t(place.record) + h, h, 2 + h, 4);
      } else if (first) {
        store_group(p, place, r, int64_t(place.record) * kRecordColumns / s.group, 0, 1, 2);
      }
    }
    if constexpr (kScheme == ScaleScheme::super_min) {
      const unsigned char* block = s.block(row, place.record / 4);
      if (first) {
        for (int i = 0; i < 2; ++i)
          store_entry<uint16_t>(place.head, i, 2, r, real ? uint16_t(stored::half_at(block + 2 * i)) : uint16_t(0));
      }
      for (int i = 0; i < 2; ++i) {
        const int sub = 2 * (place.record % 4) + i;
        store_entry<uint8_t>(place.own, i, 4, r, real ? uint8_t(stored::k_scale(block, sub)) : uint8_t(0));
        store_entry<uint8_t>(place.own, 2 + i, 4, r, real ? uint8_t(stored::k_minimum(block, sub)) : uint8_t(0));
      }
    }
    if constexpr (kScheme == ScaleScheme::super) {
      const unsigned char* block = s.block(row, place.record / 4);
      if (first) store_entry<float>(place.head, 0, 1, r, real ? stored::super_scale(s.dtype, block) : 0.f);
      for (int i = 0; i < 4; ++i) {
        const int sub = 4 * (place.record % 4) + i;
        store_entry<uint8_t>(place.own, i, 4, r, real ? uint8_t(stored::sub_scale(s.dtype, block, sub)) : uint8_t(0));
      }
    }
    if constexpr (kScheme == ScaleScheme::row) {
      if (!first) return;
      int corrupt = 0;
      const int zero = kWidth == CodeWidth::u8 ? 0 : real ? s.zero_of(row, 0, corrupt) : 8;
      if (corrupt != 0) p.error.report(kPackZeros, corrupt, row);
      store_entry<float>(place.head, 0, 2, r, real ? stored::float_at(s.scale_of(row, 0), s.scale_dtype) : 0.f);
      store_entry<float>(place.head, 1, 2, r, float(zero));
    }
  }

  // What columns past K hold, so that they count as weights of 0: the zero point of the group they lie in.
  static LAPIDARY_DEVICE int padding_of(const PackSource& s, int64_t row) {
    if constexpr (kScheme == ScaleScheme::row && kWidth == CodeWidth::u4) {
      int corrupt = 0;
      const int zero = row < s.rows ? s.zero_of(row, 0, corrupt) : 8;
      return zero > 15 ? 15 : zero;  // gptq's 16 is no code
    }
    return kScheme == ScaleScheme::group_zero ? 8 : kZero;
  }

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const PackPlace place = pack_place(p.panels, p.out);
    if (place.panel >= p.panels.panels) return;
    const PackSource& s = p.source;
    const bool first = (place.record & int((1u << p.panels.block_shift) - 1u)) == 0;
    if (place.t == 0) {
      for (int half = 0; half < 2; ++half) store_scales(p, place, place.g + 8 * half, first);
    }
    constexpr bool kSubscales = kScheme == ScaleScheme::super || kScheme == ScaleScheme::super_min;
    unsigned char* codes = place.own + (kSubscales ? 64 : 0);
    uint32_t plane[2] = {0, 0};
    for (int group = 0; group < 2; ++group) {
      for (int half = 0; half < 2; ++half) {
        const int64_t row = place.row + place.g + 8 * half;
        const int64_t column = int64_t(place.record) * kRecordColumns + 32 * group + 8 * place.t;
        const int padding = padding_of(s, row);
        if constexpr (kWidth == CodeWidth::u8) {
          dev::Words2 bytes = {};
          for (int i = 0; i < 8; ++i) {
            const int code = code_of(s, row, column + column_of_byte(i), padding);
            bytes.word[i / 4] |= uint32_t(code & 255) << (8 * (i % 4));
          }
          dev::store(reinterpret_cast<dev::Words2*>(codes + group * 512 + dev::lane() * 16 + half * 8), bytes);
        } else {
          uint32_t word = 0;
          for (int nibble = 0; nibble < 8; ++nibble) {
            const uint32_t code = uint32_t(code_of(s, row, column + column_of_nibble(nibble), padding));
            word |= (code & 15) << (4 * nibble);
            if constexpr (kWidth == CodeWidth::u5) plane[0] |= (code >> 4 & 1) << plane_bit(group, half, nibble);
            if constexpr (kWidth == CodeWidth::u6) plane[group] |= (code >> 4 & 3) << plane_pair(half, nibble);
          }
          dev::store(reinterpret_cast<uint32_t*>(codes) + dev::lane() * 4 + 2 * group + half, word);
        }
      }
    }
    if constexpr (kWidth == CodeWidth::u5) dev::store(reinterpret_cast<uint32_t*>(codes + 512) + dev::lane(), plane[0]);
    if constexpr (kWidth == CodeWidth::u6) {
      dev::store(reinterpret_cast<dev::Words2*>(codes + 512) + dev::lane(), dev::Words2{{plane[0], plane[1]}});
    }
  }
};

// ── floats ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// T: as many bytes as an element has.
template <class T>
struct PackFloats {
  using Params = PackParams;
  static constexpr int kThreads = 128, kMinBlocks = 4;

  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const PackPlace place = pack_place(p.panels, p.out);
    if (place.panel >= p.panels.panels) return;
    const PackSource& s = p.source;
    for (int half = 0; half < 2; ++half) {
      const int r = place.g + 8 * half;
      const int64_t row = place.row + r;
      if (sizeof(T) == 1 && place.t == 0 && place.record == 0) {
        store_entry<float>(place.head, 0, 1, r, row < s.rows ? s.scale : 0.f);
      }
      for (int i = 0; i < 8; ++i) {
        const int64_t k = int64_t(place.record) * 32 + 8 * place.t + i;
        const bool real = row < s.rows && k < s.columns;
        const T element = real ? dev::load(reinterpret_cast<const T*>(s.weight + row * s.weight_stride) + k) : T(0);
        dev::store(reinterpret_cast<T*>(place.own + float_offset(sizeof(T), dev::lane(), half, i)), element);
      }
    }
  }
};

// ── the order of columns, and stacking ──────────────────────────────────────────────────────────────────────────────

struct ColumnOrderParams {
  const int32_t* order;
  int64_t columns;
  ErrorReporter error;
};

// Every entry is a column.
struct CheckColumnOrder {
  using Params = ColumnOrderParams;
  static constexpr int kThreads = 256, kMinBlocks = 1;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t k = int64_t(dev::block_index_x()) * kThreads + dev::thread_index();
    if (k >= p.columns) return;
    const int32_t column = dev::load(p.order + k);
    if (column < 0 || column >= p.columns) p.error.report(kPackColumnOrder, p.columns, column);
  }
};

struct StackParams {
  const unsigned char* from[3];
  int64_t panels[3];  // of each
  unsigned char* to;
  int64_t panel_bytes;
  bool gate_up;
};

// One block copies one panel, 16 bytes per thread at a time: panels are whole multiples of 64 bytes.
struct StackPanels {
  using Params = StackParams;
  static constexpr int kThreads = 256, kMinBlocks = 1;
  static LAPIDARY_DEVICE void run(const Params& p, unsigned char*) {
    const int64_t panel = dev::block_index_x();
    int source = p.gate_up ? int(panel % 2) : 0;
    int64_t from = p.gate_up ? panel / 2 : panel;
    for (; !p.gate_up && from >= p.panels[source]; ++source) from -= p.panels[source];
    const unsigned char* in = p.from[source] + from * p.panel_bytes;
    unsigned char* out = p.to + panel * p.panel_bytes;
    for (int64_t at = dev::thread_index() * 16; at < p.panel_bytes; at += kThreads * 16) {
      dev::store(reinterpret_cast<dev::Words4*>(out + at), dev::load_stream_16(in + at));
    }
  }
};

}  // namespace lapidary::cuda
