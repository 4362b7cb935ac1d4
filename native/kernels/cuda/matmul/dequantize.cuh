// dequantize.cuh: how a lane's share of a record (weights/fragment_panels.cuh) becomes operands: the one policy per weight format
// that the kernels of matmul are written over.
//
//   decode.cuh        words of four codes for dot4_i8, and the group's scales: products are summed as the CPU's are, group_term()
//   tensor_core.cuh   words of two bf16 for mma_bf16
//
// Codes become bf16 without a conversion: a code of up to 7 bits is OR-ed under the exponent of 128, bf16 0x4300, where the last
// mantissa bit counts 1, and 128 + zero is subtracted exactly (Kim et al. 2022, arXiv 2211.10017, in f16; the bf16 form is that of
// vLLM's dequant.h). Signed bytes take the same way in f32, under the exponent of 2^23.
//
//   format             mma operand                            applied after the sum over…
//   pair, group_zero   code − zero, exact                     32 columns (or the record): s
//   row                code − zero, exact                     all columns: s
//   pair_min           s·code + m, rounded to bf16            –
//   super_min, super   d·sc·code − dmin·mn, d·sc·(code − zero), rounded to bf16  –
//   bf16; f16; sfp8    exact; rounded to bf16; exact          sfp8: all columns: s
#pragma once
#include "kernels/cuda/weights/fragment_panels.cuh"
#include "kernels/cuda/weights/stored_weights.cuh"

namespace lapidary::cuda::matmul {

LAPIDARY_DEVICE float low_half(uint32_t pair, bool bf16) { return bf16 ? dev::low_bf16(pair) : dev::low_f16(pair); }
LAPIDARY_DEVICE float high_half(uint32_t pair, bool bf16) { return bf16 ? dev::high_bf16(pair) : dev::high_f16(pair); }
LAPIDARY_DEVICE float unfused_mul(float a, float b) { return dev::fma(a, b, -0.0f); }

// Scales of one group of 32 columns, for rows g and g + 8. `second`: minimum, or zero point.
struct GroupScales {
  float first[2], second[2];
};

// Signed bytes `byte` and byte + 2 of a word.
LAPIDARY_DEVICE void signed_pair(uint32_t bytes, int byte, float& low, float& high) {
  const uint32_t word = bytes ^ 0x80808080u;
  low = dev::bit_cast<float>(dev::byte_permute(word, 0x4b000000u, 0x7440u + uint32_t(byte))) - 8388736.0f;
  high = dev::bit_cast<float>(dev::byte_permute(word, 0x4b000000u, 0x7442u + uint32_t(byte))) - 8388736.0f;
}

enum class ScaleAfter : uint8_t { never, group, end };

// How a lane's bytes are copied: straight into registers, past the caches …
struct FromGlobal {
  static LAPIDARY_DEVICE dev::Words4 load16(const void* p) { return dev::load_stream_16(p); }
  static LAPIDARY_DEVICE dev::Words2 load8(const void* p) { return dev::load_stream_8(p); }
  static LAPIDARY_DEVICE uint32_t load4(const void* p) { return dev::load_stream_4(p); }
};
// … or out of what stage() left in shared memory.
struct FromShared {
  static LAPIDARY_DEVICE dev::Words4 load16(const void* p) {
    return dev::load_shared(static_cast<const dev::Words4*>(p));
  }
  static LAPIDARY_DEVICE dev::Words2 load8(const void* p) {
    return dev::load_shared(static_cast<const dev::Words2*>(p));
  }
  static LAPIDARY_DEVICE uint32_t load4(const void* p) { return dev::load_shared(static_cast<const uint32_t*>(p)); }
};

// ── integer formats ─────────────────────────────────────────────────────────────────────────────────────────────────

// kRecordHead: group_zero of 32 columns; otherwise groups of 64 and 128, whose head serves a record or two.
template <int bits, ScaleScheme kScheme, bool kRecordHead = true>
struct Codes {
  static constexpr int kBits = bits;
  static constexpr ScaleScheme scheme = kScheme;
  static constexpr bool kFloat = false;
  static constexpr bool kWide = bits == 6;  // in registers: eight rows of x leave no room for a second block
  static constexpr int kColumns = 64;
  static constexpr bool kWideGroup = kScheme == ScaleScheme::group_zero && !kRecordHead;
  static constexpr bool kHasMinimum = kScheme == ScaleScheme::pair_min || kScheme == ScaleScheme::super_min;
  static constexpr ScaleAfter kScaleAfter = kScheme == ScaleScheme::pair || kScheme == ScaleScheme::group_zero
                                                ? ScaleAfter::group
                                            : kScheme == ScaleScheme::row ? ScaleAfter::end
                                                                          : ScaleAfter::never;
  // What codes are relative to in the exact integer sums; the others subtract zero points or minima apart.
  static constexpr int kZero = kHasMinimum || kScheme == ScaleScheme::group_zero || bits == 8 ? 0
                               : bits == 4                                                    ? 8
                               : bits == 5                                                    ? 16
                                                                                              : 32;
  // Bytes of a lane's share.
  static constexpr int kCode = bits == 8 ? 32 : 16;
  static constexpr int kPlane = bits == 5 ? 4 : bits == 6 ? 8 : 0;
  static constexpr int kSub = kScheme == ScaleScheme::super || kScheme == ScaleScheme::super_min ? 8 : 0;
  static constexpr int kHead = kScheme == ScaleScheme::row ? 0
                               : kScheme == ScaleScheme::pair_min || (kScheme == ScaleScheme::group_zero && kRecordHead)
                                   ? 16
                                   : 8;
  static constexpr int kLaneBytes = kCode + kPlane + kSub + kHead;

  struct Share {
    uint32_t code[kCode / 4];
    uint32_t plane[2];
    uint32_t head[4];
    uint32_t sub[2];
  };

  template <class From, int kBytes>
  static LAPIDARY_DEVICE void fetch(const unsigned char* p, uint32_t* words) {
    if constexpr (kBytes == 16) {
      const dev::Words4 v = From::load16(p);
      for (int i = 0; i < 4; ++i) words[i] = v.word[i];
    } else if constexpr (kBytes == 8) {
      const dev::Words2 v = From::load8(p);
      words[0] = v.word[0];
      words[1] = v.word[1];
    } else if constexpr (kBytes == 4) {
      words[0] = From::load4(p);
    }
  }

  // A lane's share of a record in global memory.
  static LAPIDARY_DEVICE void load(const Panels& panels, const unsigned char* panel, int record, int lane, Share& s) {
    const unsigned char* own = panel + panels.record_offset(record);
    const unsigned char* codes = own + (kSub ? 64 : 0);
    fetch<FromGlobal, 16>(codes + lane * 16, s.code);
    if constexpr (bits == 8) fetch<FromGlobal, 16>(codes + 512 + lane * 16, s.code + 4);
    fetch<FromGlobal, kPlane>(codes + 512 + lane * kPlane, s.plane);
    fetch<FromGlobal, kHead>(panel + panels.head_offset(record) + lane / 4 * kHead, s.head);
    fetch<FromGlobal, kSub>(own + lane / 4 * kSub, s.sub);
  }

  // The same by way of shared memory: `slot` holds 32 · kLaneBytes, of which each lane reads only what it wrote.
  static LAPIDARY_DEVICE void stage(const Panels& panels, const unsigned char* panel, int record, int lane, bool valid,
                                    unsigned char* slot) {
    const unsigned char* own = panel + panels.record_offset(record);
    const unsigned char* codes = own + (kSub ? 64 : 0);
    dev::copy_async_16(slot + lane * 16, codes + lane * 16, valid);
    slot += 512;
    if constexpr (bits == 8) {
      dev::copy_async_16(slot + lane * 16, codes + 512 + lane * 16, valid);
      slot += 512;
    }
    const unsigned char* head = panel + panels.head_offset(record) + lane / 4 * kHead;
    if constexpr (kHead == 16) dev::copy_async_16(slot + lane * 16, head, valid);
    if constexpr (kHead == 8) dev::copy_async_8(slot + lane * 8, head, valid);
    slot += 32 * kHead;
    if constexpr (kSub == 8) dev::copy_async_8(slot + lane * 8, own + lane / 4 * 8, valid);
    slot += 32 * kSub;
    if constexpr (kPlane == 8) dev::copy_async_8(slot + lane * 8, codes + 512 + lane * 8, valid);
    if constexpr (kPlane == 4) dev::copy_async_4(slot + lane * 4, codes + 512 + lane * 4, valid);
  }
  static LAPIDARY_DEVICE void unstage(const unsigned char* slot, int lane, Share& s) {
    fetch<FromShared, 16>(slot + lane * 16, s.code);
    slot += 512;
    if constexpr (bits == 8) {
      fetch<FromShared, 16>(slot + lane * 16, s.code + 4);
      slot += 512;
    }
    fetch<FromShared, kHead>(slot + lane * kHead, s.head);
    slot += 32 * kHead;
    fetch<FromShared, kSub>(slot + lane * kSub, s.sub);
    slot += 32 * kSub;
    fetch<FromShared, kPlane>(slot + lane * kPlane, s.plane);
  }

  // The lane's eight codes of row g + 8·half in a group, as signed bytes: columns 0 4 1 5 and 2 6 3 7.
  static LAPIDARY_DEVICE void bytes(const Share& s, int group, int half, uint32_t& even, uint32_t& odd) {
    if constexpr (bits == 8) {
      even = s.code[4 * group + 2 * half];
      odd = s.code[4 * group + 2 * half + 1];
      return;
    }
    const uint32_t word = s.code[2 * group + half];
    even = word & 0x0f0f0f0fu;
    odd = word >> 4 & 0x0f0f0f0fu;
    if constexpr (bits == 5) {
      even |= s.plane[0] >> (4 * group + 2 * half) << 4 & 0x10101010u;
      odd |= s.plane[0] >> (4 * group + 2 * half + 1) << 4 & 0x10101010u;
    }
    if constexpr (bits == 6) {
      even |= s.plane[group] >> (4 * half) << 4 & 0x30303030u;
      odd |= s.plane[group] >> (4 * half + 2) << 4 & 0x30303030u;
    }
  }

  static LAPIDARY_DEVICE GroupScales scales(const Share& s, int group, int lane, bool bf16) {
    GroupScales r = {};
    const auto both = [&](uint32_t pair, bool is_bf16, float(&to)[2]) {
      to[0] = low_half(pair, is_bf16);
      to[1] = high_half(pair, is_bf16);
    };
    if constexpr (kScheme == ScaleScheme::pair) both(s.head[group], bf16, r.first);
    if constexpr (kScheme == ScaleScheme::pair_min) {
      both(s.head[group], false, r.first);
      both(s.head[2 + group], false, r.second);
    }
    if constexpr (kScheme == ScaleScheme::group_zero) {
      both(s.head[kRecordHead ? group : 0], bf16, r.first);
      both(s.head[kRecordHead ? 2 + group : 1], bf16, r.second);
    }
    if constexpr (kScheme == ScaleScheme::super_min) {
      float d[2], dmin[2];
      both(s.head[0], false, d);
      both(s.head[1], false, dmin);
      for (int half = 0; half < 2; ++half) {
        const int byte = 8 * (2 * group + half);
        r.first[half] = unfused_mul(d[half], float(s.sub[0] >> byte & 255));
        r.second[half] = -unfused_mul(dmin[half], float(s.sub[1] >> byte & 255));
      }
    }
    if constexpr (kScheme == ScaleScheme::super) {  // the sub-scale of the 16 columns that the lane's eight lie in
      for (int half = 0; half < 2; ++half) {
        const int byte = 8 * (lane % 4 / 2 * 2 + half);
        r.first[half] = unfused_mul(dev::bit_cast<float>(s.head[half]), float(int8_t(s.sub[group] >> byte)));
      }
    }
    return r;
  }

  // ── for the tensor cores ──

  // 128 + code of columns 2·pair and 2·pair + 1, as bf16.
  static LAPIDARY_DEVICE uint32_t biased_pair(const Share& s, int group, int half, int pair) {
    uint32_t v = (s.code[2 * group + half] >> (4 * pair) & 0x000f000fu) | 0x43004300u;
    if constexpr (bits == 5) {
      const int bit = plane_bit(group, half, pair);  // the partner's lies 16 higher
      v |= (s.plane[0] >> bit & 0x00010001u) << 4;
    }
    if constexpr (bits == 6) v |= (s.plane[group] >> plane_pair(half, pair) & 0x00030003u) << 4;
    return v;
  }

  // The operand words of row g + 8·half: columns 2·pair and 2·pair + 1 of the lane's eight in a group.
  static LAPIDARY_DEVICE uint32_t operand(const Share& s, const GroupScales& scales, int group, int half, int pair) {
    if constexpr (bits == 8) {
      float low, high;
      signed_pair(s.code[4 * group + 2 * half + pair % 2], pair / 2, low, high);
      return dev::pack_bf16(low, high);
    }
    const uint32_t biased = biased_pair(s, group, half, pair);
    constexpr uint32_t kOnes = 0x3f803f80u;
    if constexpr (kScheme == ScaleScheme::group_zero || kScheme == ScaleScheme::row) {
      const uint32_t zero = 0xc300u + uint32_t(dev::round_to_int(scales.second[half]));  // −(128 + z)
      return dev::fma_bf16x2(biased, kOnes, zero | zero << 16);
    }
    if constexpr (kScaleAfter != ScaleAfter::never)
      return dev::fma_bf16x2(biased, kOnes, 0xc300c300u + kZero * 0x00010001u);
    const float low = dev::low_bf16(biased) - float(128 + kZero), high = dev::high_bf16(biased) - float(128 + kZero);
    if constexpr (kScheme == ScaleScheme::super) {
      return dev::pack_bf16(unfused_mul(scales.first[half], low), unfused_mul(scales.first[half], high));
    }
    return dev::pack_bf16(dev::fma(scales.first[half], low, scales.second[half]),
                          dev::fma(scales.first[half], high, scales.second[half]));
  }
};

// Numbers of entries of kTable4 (ops/weight_panels.h), four bits each; what they stand for are signed bytes.
template <ScaleScheme kScheme>
struct TableCodes : Codes<4, kScheme> {
  using Base = Codes<4, kScheme>;
  using Share = typename Base::Share;
  static constexpr int kZero = 0;

  // Entries of the numbers in the lower four nibbles of a word, in order. A selector of byte_permute is three bits: the
  // fourth one chooses between the halves of the table.
  static LAPIDARY_DEVICE uint32_t four_entries(uint32_t numbers) {
    const uint32_t place = numbers & 0x7777u;
    const uint32_t low = dev::byte_permute(stored::table_word(0), stored::table_word(1), place);
    const uint32_t high = dev::byte_permute(stored::table_word(2), stored::table_word(3), place);
    return dev::byte_permute(low, high, 0x3210u | (numbers & 0x8888u) >> 1);
  }
  static LAPIDARY_DEVICE void bytes(const Share& s, int group, int half, uint32_t& even, uint32_t& odd) {
    const uint32_t word = s.code[2 * group + half];
    const uint32_t first = four_entries(word), second = four_entries(word >> 16);
    even = dev::byte_permute(first, second, 0x6420u);
    odd = dev::byte_permute(first, second, 0x7531u);
  }
  static LAPIDARY_DEVICE uint32_t operand(const Share& s, const GroupScales& scales, int group, int half, int pair) {
    uint32_t even, odd;
    bytes(s, group, half, even, odd);
    float low, high;
    signed_pair(pair % 2 ? odd : even, pair / 2, low, high);
    if constexpr (Base::kScaleAfter != ScaleAfter::never) return dev::pack_bf16(low, high);
    return dev::pack_bf16(unfused_mul(scales.first[half], low), unfused_mul(scales.first[half], high));
  }
};

// ── float formats ───────────────────────────────────────────────────────────────────────────────────────────────────

template <DType kDType>
struct Floats {
  static constexpr ScaleScheme scheme = ScaleScheme::none;
  static constexpr bool kFloat = true, kWide = true;
  static constexpr bool kWideGroup = false;
  static constexpr int kColumns = 32;
  static constexpr int kElement = kDType == DType::f32 ? 4 : kDType == DType::sfp8 ? 1 : 2;
  static constexpr int kLaneBytes = 16 * kElement;  // two rows of eight
  static constexpr ScaleAfter kScaleAfter = kDType == DType::sfp8 ? ScaleAfter::end : ScaleAfter::never;

  struct Share {
    uint32_t word[kLaneBytes / 4];  // row g, then row g + 8
  };

  template <class From>
  static LAPIDARY_DEVICE void fetch(const unsigned char* p, Share& s) {
    for (int i = 0; i < kElement; ++i) {
      const dev::Words4 v = From::load16(p + 512 * i);
      for (int j = 0; j < 4; ++j) s.word[4 * i + j] = v.word[j];
    }
  }
  static LAPIDARY_DEVICE void load(const Panels& panels, const unsigned char* panel, int record, int lane, Share& s) {
    fetch<FromGlobal>(panel + panels.record_offset(record) + lane * 16, s);
  }
  static LAPIDARY_DEVICE void stage(const Panels& panels, const unsigned char* panel, int record, int lane, bool valid,
                                    unsigned char* slot) {
    const unsigned char* from = panel + panels.record_offset(record) + lane * 16;
    for (int i = 0; i < kElement; ++i) dev::copy_async_16(slot + 512 * i + lane * 16, from + 512 * i, valid);
  }
  static LAPIDARY_DEVICE void unstage(const unsigned char* slot, int lane, Share& s) {
    fetch<FromShared>(slot + lane * 16, s);
  }

  static LAPIDARY_DEVICE GroupScales scales(const Share&, int, int, bool) { return {}; }

  // sfp8 as bf16 bits of both bytes of a pair; exact.
  static LAPIDARY_DEVICE uint32_t sfp8_pair(uint32_t word, int first) {
    uint32_t pair = 0;
    for (int i = 0; i < 2; ++i) {
      const uint32_t byte = word >> (8 * (first + i)) & 255, v = byte & 127;
      const uint32_t magnitude = v == 0 ? 0 : v < 64 ? 0x3400u + (v << 5) : 0x3800u + (v << 4);
      pair |= (magnitude | (byte & 128) << 8) << (16 * i);
    }
    return pair;
  }

  // Weights 0 … 7 of row g + 8·half in f32, before sfp8's scale.
  static LAPIDARY_DEVICE void values(const Share& s, int half, float (&w)[8]) {
    for (int pair = 0; pair < 4; ++pair) {
      if constexpr (kDType == DType::f32) {
        w[2 * pair] = dev::bit_cast<float>(s.word[8 * half + 2 * pair]);
        w[2 * pair + 1] = dev::bit_cast<float>(s.word[8 * half + 2 * pair + 1]);
      } else if constexpr (kDType == DType::sfp8) {
        const uint32_t both = sfp8_pair(s.word[2 * half + pair / 2], pair % 2 * 2);
        w[2 * pair] = dev::low_bf16(both);
        w[2 * pair + 1] = dev::high_bf16(both);
      } else {
        const uint32_t both = s.word[4 * half + pair];
        w[2 * pair] = low_half(both, kDType == DType::bf16);
        w[2 * pair + 1] = high_half(both, kDType == DType::bf16);
      }
    }
  }

  static LAPIDARY_DEVICE uint32_t operand(const Share& s, const GroupScales&, int, int half, int pair) {
    if constexpr (kDType == DType::bf16) return s.word[4 * half + pair];
    if constexpr (kDType == DType::f16) {
      const uint32_t both = s.word[4 * half + pair];
      return dev::pack_bf16(dev::low_f16(both), dev::high_f16(both));
    }
    if constexpr (kDType == DType::sfp8) return sfp8_pair(s.word[2 * half + pair / 2], pair % 2 * 2);
    return 0;  // f32 has no place on tensor cores
  }
};

// What a format applies when all columns are summed: s and z of rows g and g + 8 of a panel (row), or s (sfp8).
template <class Format>
LAPIDARY_DEVICE GroupScales end_scales(const unsigned char* panel, int lane) {
  GroupScales r = {{1, 1}, {0, 0}};
  const float* head = reinterpret_cast<const float*>(panel);
  for (int half = 0; half < 2; ++half) {
    if constexpr (Format::scheme == ScaleScheme::row) {
      r.first[half] = dev::load(head + entry_of(0, 2, lane / 4 + 8 * half));
      r.second[half] = dev::load(head + entry_of(1, 2, lane / 4 + 8 * half));
    } else if constexpr (Format::kScaleAfter == ScaleAfter::end) {
      r.first[half] = dev::load(head + entry_of(0, 1, lane / 4 + 8 * half));
    }
  }
  return r;
}

// Calls visit(Format()) with the format of a packed matrix.
template <class Visit>
void with_format(const TensorView& w, const Visit& visit) {
  switch (w.dtype) {
    case DType::f32: return visit(Floats<DType::f32>());
    case DType::f16: return visit(Floats<DType::f16>());
    case DType::bf16: return visit(Floats<DType::bf16>());
    case DType::sfp8: return visit(Floats<DType::sfp8>());
    case DType::q4_0: return visit(Codes<4, ScaleScheme::pair>());
    case DType::q4_1: return visit(Codes<4, ScaleScheme::pair_min>());
    case DType::q5_0: return visit(Codes<5, ScaleScheme::pair>());
    case DType::q5_1: return visit(Codes<5, ScaleScheme::pair_min>());
    case DType::q8_0: return visit(Codes<8, ScaleScheme::pair>());
    case DType::q4_k: return visit(Codes<4, ScaleScheme::super_min>());
    case DType::q5_k: return visit(Codes<5, ScaleScheme::super_min>());
    case DType::q6_k: return visit(Codes<6, ScaleScheme::super>());
    case DType::iq4_xs: return visit(TableCodes<ScaleScheme::super>());
    case DType::i8: return visit(Codes<8, ScaleScheme::row>());
    default: break;  // i4
  }
  switch (panel_format(w).scheme) {
    case ScaleScheme::pair: return visit(Codes<4, ScaleScheme::pair>());
    case ScaleScheme::row: return visit(Codes<4, ScaleScheme::row>());
    default: break;
  }
  if (w.group == 32) return visit(Codes<4, ScaleScheme::group_zero, true>());
  visit(Codes<4, ScaleScheme::group_zero, false>());
}

}  // namespace lapidary::cuda::matmul
