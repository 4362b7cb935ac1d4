#include "backends/cpu/isa.h"

#include <cstring>

#include "backends/cpu/amx.h"
#include "backends/cpu/kernel_sets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace lapidary {
namespace {

struct IsaEntry {
  const char* name;
  const char* architecture;
  int panel_rows;
  bool hidden;
};

constexpr IsaEntry kIsas[] = {
#define LAPIDARY_ISA(name, architecture, panel_rows, hidden) {#name, #architecture, panel_rows, hidden},
#include "kernels/cpu/isa.def"
#undef LAPIDARY_ISA
};

#if defined(__x86_64__)
constexpr const char* kArchitecture = "x86_64";

// vdpbf16ps runs at full rate on AMD since Zen 4 and at half the rate of an fp32 FMA on Intel: there it never pays.
bool fast_bf16_dot() {
  unsigned a, b, c, d;
  if (!__get_cpuid(0, &a, &b, &c, &d)) return false;
  return b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
}

const char* unsupported_reason(const std::string& name) {
  if (name == "scalar") return nullptr;
  __builtin_cpu_init();
  if (name == "avx2") {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? nullptr
                                                                           : "the processor has no AVX2 and FMA";
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
  if (!avx512) return "the processor has no AVX-512 with BW, VL, DQ, VNNI and VBMI";
  if (name == "avx512") return nullptr;
  if (!__builtin_cpu_supports("avx512bf16")) return "the processor has no AVX512-BF16";
  if (name == "avx512_bf16") return fast_bf16_dot() ? nullptr : "vdpbf16ps is slower than FMA on this processor";
  if (name == "amx_emulated") return nullptr;
  if (name == "amx") return amx_report().available ? nullptr : amx_report().reason;
  return "unknown";
}
#elif defined(__aarch64__)
constexpr const char* kArchitecture = "aarch64";

#if defined(__linux__)
bool has_byte_products() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP); }
#elif defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t length = sizeof value;
  return sysctlbyname(name, &value, &length, nullptr, 0) == 0 && value != 0;
}
bool has_byte_products() {
  return has_feature("hw.optional.arm.FEAT_I8MM") && has_feature("hw.optional.arm.FEAT_DotProd");
}
#else
bool has_byte_products() { return false; }
#endif

const char* unsupported_reason(const std::string& name) {
  if (name == "scalar" || name == "neon") return nullptr;
  if (name == "i8mm") {
    return has_byte_products() ? nullptr : "the processor has no int8 matrix multiplication (I8MM) with dot products";
  }
  return "unknown";
}
#else
constexpr const char* kArchitecture = "other";
const char* unsupported_reason(const std::string& name) { return name == "scalar" ? nullptr : "unknown architecture"; }
#endif

bool is_compiled(const char* isa) {
  for (int i = 0; i < lapidary_kernel_set_count; ++i) {
    if (strcmp(lapidary_kernel_sets[i].isa, isa) == 0) return true;
  }
  return false;
}

}  // namespace

std::vector<IsaInfo> detect_isas() {
  std::vector<IsaInfo> isas;
  for (const IsaEntry& entry : kIsas) {
    IsaInfo isa;
    isa.name = entry.name;
    isa.compiled = is_compiled(entry.name);
    if (strcmp(entry.architecture, "any") != 0 && strcmp(entry.architecture, kArchitecture) != 0) {
      isa.reason = std::string("for ") + entry.architecture;
    } else if (const char* reason = unsupported_reason(isa.name)) {
      isa.reason = reason;
    } else if (!isa.compiled) {
      isa.reason = "not part of this build";
    } else {
      isa.supported = true;
    }
    isas.push_back(isa);
  }
  return isas;
}

int isa_panel_rows(const std::string& name) {
  for (const IsaEntry& entry : kIsas) {
    if (name == entry.name) return entry.panel_rows;
  }
  return 0;
}

bool isa_hidden(const std::string& name) {
  for (const IsaEntry& entry : kIsas) {
    if (name == entry.name) return entry.hidden;
  }
  return false;
}

std::vector<IsaInfo> list_isas() { return detect_isas(); }

}  // namespace lapidary
