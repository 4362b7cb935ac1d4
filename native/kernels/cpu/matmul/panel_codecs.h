// panel_codecs.h: how the codes and scales of each panel format (ops/weight_panels.h) become vectors.
//
// A Format<width, scheme> names a panel format at compile time. expand_line<width>() expands a record's codes;
// Format::load() reads the scales of one group. What a group contributes to an output is written once, in group_term():
//
//   f = Σ (code − zero) · q              exact: integers below 2²⁴
//   pair, group_zero   t = f · s
//   pair_min           t = fma(f, s, Σq · m)
//   super_min          the same with s = d · sc (exact), m = −dmin · mn (exact)
//   super              t = fma(f₁, s₁, f₀ · s₀), halves of 16 columns, s = d · sc
//   row                t = f
//   y ← fma(t, scale of x, y)            row: at the end y ← s · fnma(z − zero, Σ Σq · scale of x, y)
#pragma once
#include "kernels/cpu/matmul/activations.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

static constexpr int R = kLanes;          // rows of a panel
static constexpr int kLine = 4 * kLanes;  // bytes of a vector of codes

// ── codes
// ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

// Vectors 2·line and 2·line + 1 of group 0 or 1 of a record: its columns 8·line … 8·line + 7. `codes` points behind the
// record's sub-scales.
template <CodeWidth kWidth>
LAPIDARY_INLINE void expand_line(const unsigned char* codes, int group, int line, Bytes& even, Bytes& odd) {
  if constexpr (kWidth == CodeWidth::u8) {
    even = load_bytes(codes + (group * kSteps + 2 * line) * kLine);
    odd = load_bytes(codes + (group * kSteps + 2 * line + 1) * kLine);
    return;
  }
  const Bytes packed = load_bytes_once(codes + (group * 4 + line) * kLine);
  even = low_nibbles(packed);
  odd = high_nibbles(packed);
  if constexpr (kWidth == CodeWidth::table4) {
    even = look_up(even, kTable4);
    odd = look_up(odd, kTable4);
  }
  const unsigned char* planes = codes + 8 * kLine;
  if constexpr (kWidth == CodeWidth::u5) {
    even = or_bytes(even, bits_to_bytes(planes + (group * kSteps + 2 * line) * (R / 2), 16));
    odd = or_bytes(odd, bits_to_bytes(planes + (group * kSteps + 2 * line + 1) * (R / 2), 16));
  }
  if constexpr (kWidth == CodeWidth::u6) {
    const Bytes plane = load_bytes(planes + (group * 2 + line / 2) * kLine);
    even = or_bytes(even, bit_pairs_high(plane, 2 * line % 4));
    odd = or_bytes(odd, bit_pairs_high(plane, 2 * line % 4 + 1));
  }
}
// The same by line 0 … 7 of the record.
template <CodeWidth kWidth>
LAPIDARY_INLINE void expand_line(const unsigned char* codes, int line, Bytes& even, Bytes& odd) {
  expand_line<kWidth>(codes, line / 4, line % 4, even, odd);
}

// ── scales
// ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

// `a` and `b` of one group for the rows of a panel: (s, –), (s, m), (s, z) or (s₀, s₁).
struct GroupScales {
  F32 a, b;
};

// kLanes 16-bit floats that are bf16 or f16.
LAPIDARY_INLINE F32 load_scale(const unsigned char* p, bool bf16) {
  const uint16_t* values = reinterpret_cast<const uint16_t*>(p);
  return bf16 ? load_bf16(values) : load_f16(values);
}

// kRecordHead: a head before every record. kBits: what a dot product may assume of codes (simd/dot_sum.h): they are below
// 2^kBits.
template <CodeWidth kWidth, ScaleScheme kScheme, bool kRecordHead>
struct Format {
  static constexpr CodeWidth width = kWidth;
  static constexpr int kBits = kWidth == CodeWidth::u4   ? (kScheme == ScaleScheme::super ? 3 : 4)
                               : kWidth == CodeWidth::u5 ? 5
                               : kWidth == CodeWidth::u6 ? 6
                                                         : 8;
  static constexpr ScaleScheme scheme = kScheme;
  static constexpr bool has_min = kScheme == ScaleScheme::pair_min || kScheme == ScaleScheme::super_min;
  static constexpr int subscale_bytes = kScheme == ScaleScheme::super || kScheme == ScaleScheme::super_min ? 4 * R : 0;
  static constexpr int code_bytes = R * (kWidth == CodeWidth::u5   ? 40
                                         : kWidth == CodeWidth::u6 ? 48
                                         : kWidth == CodeWidth::u8 ? 64
                                                                   : 32);
  static constexpr int record_bytes = subscale_bytes + code_bytes;
  // Bytes of head before every record; 0 where a head serves several.
  static constexpr int record_head_bytes = !kRecordHead ? 0 : kScheme == ScaleScheme::pair ? 4 * R : 8 * R;

  // The constant that kernels start from −Σq times.
  static constexpr int zero = has_min || kScheme == ScaleScheme::group_zero ? 0
                              : kBits == 3                                  ? 4
                              : kBits == 4                                  ? 8
                              : kBits == 5                                  ? 16
                              : kBits == 6                                  ? 32
                                                                            : 128 - kDotOffset<8>;

  // head: of the record's block; record: its sub-scales; group: 0 or 1 of the record.
  LAPIDARY_INLINE GroupScales load(const unsigned char* head, const unsigned char* record, int group, bool bf16) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(head);
    if constexpr (kScheme == ScaleScheme::pair) return {load_scale(head + group * 2 * R, bf16), simd::zero()};
    if constexpr (kScheme == ScaleScheme::pair_min)
      return {load_f16(halves + group * R), load_f16(halves + (2 + group) * R)};
    if constexpr (kScheme == ScaleScheme::group_zero) {
      if constexpr (kRecordHead)
        return {load_scale(head + group * 2 * R, bf16), load_scale(head + (2 + group) * 2 * R, bf16)};
      return {load_scale(head, bf16), load_scale(head + 2 * R, bf16)};
    }
    if constexpr (kScheme == ScaleScheme::super_min) {
      const F32 s = mul(load_f16(halves), to_f32(load_u8_i32(record + group * R)));
      const F32 m = mul(load_f16(halves + R), to_f32(load_u8_i32(record + (2 + group) * R)));
      return {s, sub(simd::zero(), m)};
    }
    if constexpr (kScheme == ScaleScheme::super) {
      const F32 d = simd::load(reinterpret_cast<const float*>(head));
      const int8_t* sub_scales = reinterpret_cast<const int8_t*>(record) + 2 * group * R;
      return {mul(d, load_i8(sub_scales)), mul(d, load_i8(sub_scales + R))};
    }
    return {simd::zero(), simd::zero()};
  }
};

// Calls visit(Format) with the format of an integer panel.
template <class Visit>
LAPIDARY_INLINE void with_format(const TensorView& w, const Visit& visit) {
  switch (w.dtype) {
    case DType::q4_0: return visit(Format<CodeWidth::u4, ScaleScheme::pair, true>());
    case DType::q4_1: return visit(Format<CodeWidth::u4, ScaleScheme::pair_min, true>());
    case DType::q5_0: return visit(Format<CodeWidth::u5, ScaleScheme::pair, true>());
    case DType::q5_1: return visit(Format<CodeWidth::u5, ScaleScheme::pair_min, true>());
    case DType::q8_0: return visit(Format<CodeWidth::u8, ScaleScheme::pair, true>());
    case DType::iq4_nl: return visit(Format<CodeWidth::table4, ScaleScheme::pair, true>());
    case DType::q3_k: return visit(Format<CodeWidth::u4, ScaleScheme::super, false>());
    case DType::q4_k: return visit(Format<CodeWidth::u4, ScaleScheme::super_min, false>());
    case DType::q5_k: return visit(Format<CodeWidth::u5, ScaleScheme::super_min, false>());
    case DType::q6_k: return visit(Format<CodeWidth::u6, ScaleScheme::super, false>());
    case DType::iq4_xs: return visit(Format<CodeWidth::table4, ScaleScheme::super, false>());
    case DType::i8: return visit(Format<CodeWidth::u8, ScaleScheme::row, false>());
    default: break;
  }
  switch (panel_format(w).scheme) {  // i4
    case ScaleScheme::pair: return visit(Format<CodeWidth::u4, ScaleScheme::pair, true>());
    case ScaleScheme::row: return visit(Format<CodeWidth::u4, ScaleScheme::row, false>());
    default: break;
  }
  if (w.group == kGroup) return visit(Format<CodeWidth::u4, ScaleScheme::group_zero, true>());
  visit(Format<CodeWidth::u4, ScaleScheme::group_zero, false>());
}

// Where a panel's pieces lie. A panel of the row scheme is one block whose head is s and z.
struct PanelShape {
  int64_t blocks, records_per_block, head_bytes, panel_bytes;
  bool bf16_scales;
  int zero_of_rows;  // row scheme: the zero point that the sums contain, 8 or 128; otherwise 0
};
LAPIDARY_INLINE PanelShape panel_shape(const TensorView& w) {
  const PanelFormat format = panel_format(w);
  const int64_t records = panel_columns(w) / kRecordColumns;
  const int64_t per_block = format.records_per_block ? format.records_per_block : records;
  const int zero_of_rows = format.scheme == ScaleScheme::row ? format.zero : 0;
  return {records / per_block, per_block, format.head_values * R, panel_bytes(w), DType(w.scale_dtype) == DType::bf16,
          zero_of_rows};
}

// ── a group's contribution
// ────────────────────────────────────────────────────────────────────────────────────────────────────

// dot: the group's integer sum, or those of its halves. words: where row h's scale of x lies in the entry; stride to
// the next word.
template <ScaleScheme kScheme>
LAPIDARY_INLINE F32 group_term(F32 y, F32 f0, F32 f1, const GroupScales& scales, const unsigned char* words,
                               int stride) {
  const F32 scale = set1(load_as<float>(words));
  if constexpr (kScheme == ScaleScheme::row) return fma(f0, scale, y);
  if constexpr (kScheme == ScaleScheme::pair) return fma(mul(f0, scales.a), scale, y);
  if constexpr (kScheme == ScaleScheme::super) return fma(fma(f1, scales.b, mul(f0, scales.a)), scale, y);
  const F32 sum = set1(load_as<float>(words + stride));
  if constexpr (kScheme == ScaleScheme::group_zero) return fma(mul(fnma(scales.b, sum, f0), scales.a), scale, y);
  return fma(fma(f0, scales.a, mul(sum, scales.b)), scale, y);
}

template <ScaleScheme kScheme>
static constexpr Corrections::Kind kCorrections = kScheme == ScaleScheme::pair    ? Corrections::kStart
                                                  : kScheme == ScaleScheme::super ? Corrections::kTwoStarts
                                                  : kScheme == ScaleScheme::row   ? Corrections::kStartSum
                                                                                  : Corrections::kSum;

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
