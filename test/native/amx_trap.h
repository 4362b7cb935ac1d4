// amx_trap.h: runs AMX instructions on processors that have none.
//
// Where AMX is missing its instructions raise SIGILL. The handler here decodes the instruction that faulted, does its
// work on arrays as the Intel SDM (vol. 2, one page per instruction) describes it, and continues behind it: object code
// built for AMX then runs unchanged, about a microsecond per instruction. So the inline assembly of simd/tiles_amx.h,
// its operand order and its memory constraints are tested on every x86-64 machine. Written from the manual,
// independently of simd/tiles_emulated.h.
#pragma once
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

namespace amx_trap {

enum Kind { ldtilecfg, tilerelease, tilezero, tileloadd, tilestored, tdpbf16ps, tdpbsud, kKinds };
inline const char* const kNames[kKinds] = {"ldtilecfg",  "tilerelease", "tilezero", "tileloadd",
                                           "tilestored", "tdpbf16ps",   "tdpbsud"};

struct State {
  unsigned char config[64] = {};
  unsigned char tile[8][16][64] = {};
  int64_t executed[kKinds] = {};  // by this thread
};
inline thread_local State state;
inline int64_t lose_every_store = 0;  // simulates a guest that loses tiles: before every so many stores, all become 0

inline int rows(int t) { return state.config[48 + t]; }
inline int row_bytes(int t) { return state.config[16 + 2 * t] | state.config[17 + 2 * t] << 8; }

inline float make_f32(const unsigned char* bf16) {
  uint32_t bits = uint32_t(bf16[0] | bf16[1] << 8) << 16;
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float flush(float value) { return fpclassify(value) == FP_SUBNORMAL ? copysignf(0.f, value) : value; }

inline void dot_bf16(int c, int a, int b) {
  for (int m = 0; m < rows(c); ++m) {
    for (int n = 0; n < row_bytes(c) / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < row_bytes(a) / 4; ++k) {
        even = flush(fmaf(make_f32(&state.tile[a][m][4 * k]), make_f32(&state.tile[b][k][4 * n]), even));
        odd = flush(fmaf(make_f32(&state.tile[a][m][4 * k + 2]), make_f32(&state.tile[b][k][4 * n + 2]), odd));
      }
      memcpy(&sum, &state.tile[c][m][4 * n], 4);
      sum = flush(flush(sum) + flush(even + odd));
      memcpy(&state.tile[c][m][4 * n], &sum, 4);
    }
  }
}

inline void dot_s8u8(int c, int a, int b) {
  for (int m = 0; m < rows(c); ++m) {
    for (int n = 0; n < row_bytes(c) / 4; ++n) {
      uint32_t sum;
      memcpy(&sum, &state.tile[c][m][4 * n], 4);
      for (int k = 0; k < row_bytes(a); ++k) {
        sum += uint32_t(int8_t(state.tile[a][m][k]) * int(state.tile[b][k / 4][4 * n + k % 4]));
      }
      memcpy(&state.tile[c][m][4 * n], &sum, 4);
    }
  }
}

[[noreturn]] inline void give_up(const char* why, const unsigned char* code) {
  char text[160];
  const int length = snprintf(text, sizeof text, "amx_trap: %s: %02x %02x %02x %02x %02x %02x %02x %02x\n", why,
                              code[0], code[1], code[2], code[3], code[4], code[5], code[6], code[7]);
  (void)!write(2, text, size_t(length));
  _exit(86);
}

// The 64-bit value of general register `number` in instruction encoding.
inline uint64_t general(const ucontext_t* context, int number) {
  static const int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return uint64_t(context->uc_mcontext.gregs[kOrder[number]]);
}

inline void handle(int, siginfo_t*, void* opaque) {
  ucontext_t* context = static_cast<ucontext_t*>(opaque);
  const unsigned char* const code = reinterpret_cast<unsigned char*>(context->uc_mcontext.gregs[REG_RIP]);
  // VEX, three-byte form, map 0F38, W0, 128 bits: the only encoding AMX has.
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) give_up("not an AMX instruction", code);
  const int high_reg = (code[1] & 0x80) ? 0 : 8, high_index = (code[1] & 0x40) ? 0 : 8,
            high_base = (code[1] & 0x20) ? 0 : 8;
  const int source = ~(code[2] >> 3) & 15, prefix = code[2] & 3;  // 0 none, 1 66, 2 F3, 3 F2
  const int opcode = code[3], mod = code[4] >> 6, reg = ((code[4] >> 3) & 7) | high_reg, rm = code[4] & 7;
  int length = 5;
  unsigned char* address = nullptr;
  uint64_t stride = 0;
  if (mod != 3) {
    uint64_t base = 0;
    int64_t displacement = 0;
    int base_register = rm | high_base;
    bool no_base = mod == 0 && rm == 5;  // RIP-relative
    if (rm == 4) {
      const int sib = code[length++];
      const int index = ((sib >> 3) & 7) | high_index;
      if (index != 4) stride = general(context, index) << (sib >> 6);
      base_register = (sib & 7) | high_base;
      if (mod == 0 && (sib & 7) == 5) give_up("absolute address", code);
    }
    if (mod == 1) displacement = int8_t(code[length]), length += 1;
    if (mod == 2 || no_base) {
      int32_t wide;
      memcpy(&wide, code + length, 4);
      displacement = wide, length += 4;
    }
    base = no_base ? uint64_t(reinterpret_cast<uintptr_t>(code + length)) : general(context, base_register);
    address = reinterpret_cast<unsigned char*>(base + uint64_t(displacement));
  }
  Kind kind = kKinds;
  if (opcode == 0x49 && prefix == 0 && mod != 3 && reg == 0) {
    kind = ldtilecfg;
    address += stride;  // an ordinary memory operand
    memcpy(state.config, address, 64);
    memset(state.tile, 0, sizeof state.tile);
    if (state.config[0] != 1) give_up("palette", code);
    for (int i = 0; i < 16; ++i) {
      if (i < 8 ? rows(i) > 16 || row_bytes(i) > 64 : rows(i) + row_bytes(i) > 0) give_up("tile shape", code);
    }
  } else if (opcode == 0x49 && prefix == 0 && code[4] == 0xc0) {
    kind = tilerelease;
    memset(state.config, 0, sizeof state.config);
    memset(state.tile, 0, sizeof state.tile);
  } else if (state.config[0] != 1) {
    give_up("tiles are not configured", code);
  } else if (opcode == 0x49 && prefix == 3 && mod == 3 && reg < 8) {
    kind = tilezero;
    memset(state.tile[reg], 0, sizeof state.tile[reg]);
  } else if (opcode == 0x4b && (prefix == 3 || prefix == 2) && mod != 3 && rm == 4 && reg < 8) {
    kind = prefix == 3 ? tileloadd : tilestored;
    if (kind == tileloadd) memset(state.tile[reg], 0, sizeof state.tile[reg]);
    if (kind == tilestored && lose_every_store > 0 && (state.executed[kind] + 1) % lose_every_store == 0) {
      memset(state.tile, 0, sizeof state.tile);
    }
    for (int row = 0; row < rows(reg); ++row) {
      unsigned char* const line = address + uint64_t(row) * stride;
      if (kind == tileloadd) memcpy(state.tile[reg][row], line, size_t(row_bytes(reg)));
      if (kind == tilestored) memcpy(line, state.tile[reg][row], size_t(row_bytes(reg)));
    }
  } else if ((opcode == 0x5c || opcode == 0x5e) && prefix == 2 && mod == 3) {
    kind = opcode == 0x5c ? tdpbf16ps : tdpbsud;
    const int a = rm | high_base, b = source;
    if (reg > 7 || a > 7 || b > 7 || reg == a || reg == b || a == b) give_up("tile numbers", code);
    if (rows(reg) != rows(a) || row_bytes(reg) != row_bytes(b) || row_bytes(a) != 4 * rows(b) || rows(reg) == 0) {
      give_up("tile shapes do not fit", code);
    }
    kind == tdpbf16ps ? dot_bf16(reg, a, b) : dot_s8u8(reg, a, b);
  } else {
    give_up("unknown instruction", code);
  }
  ++state.executed[kind];
  context->uc_mcontext.gregs[REG_RIP] += length;
}

// From now on AMX instructions that fault are carried out here. Harmless where the processor has them.
inline void install() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace amx_trap
