#include "backends/cpu/amx.h"

#if defined(__x86_64__) && defined(__linux__)

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/simd/tiles_amx.h"

namespace lapidary {
namespace {

constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileData = 18;               // XFEATURE_XTILE_DATA

// "" where processor and system support tiles.
const char* missing() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return "the processor has no AMX";
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  if (!(d & kTile)) return "the processor (or the virtual machine) has no AMX";
  if (!(d & kBf16) || !(d & kInt8)) return "AMX has no bf16 or no int8 products";
  if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d) || (b >> 16) < 8 || (b & 0xffff) < 64 || (c & 0xffff) < 16) {
    return "AMX palette 1 has no 8 tiles of 16 x 64 bytes";
  }
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return "the system does not use XSAVE";
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = (1u << 17) | (1u << 18);
  if ((low & kTileState) != kTileState) return "the system does not save AMX tiles";
  return "";
}

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Stays on one CPU, so that two testers there must take turns. The testers are threads of their own: nothing to undo.
void stay_on_cpu(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  (void)sched_setaffinity(0, sizeof set, &set);
}

struct Tester {
  int cpu;
  unsigned seed;
  int64_t deadline;
  bool started;
  pthread_t thread;
  int holds, losses;
};

template <int kTile>
void store_all(simd::Tiles& tiles, unsigned char* out) {
  tiles.store<kTile>(out + kTile * simd::kTileBytes, simd::kTileRowBytes);
  if constexpr (kTile + 1 < simd::kTileCount) store_all<kTile + 1>(tiles, out);
}
template <int kTile>
void load_all(simd::Tiles& tiles, const unsigned char* in) {
  tiles.load<kTile>(in + kTile * simd::kTileBytes, simd::kTileRowBytes);
  if constexpr (kTile + 1 < simd::kTileCount) load_all<kTile + 1>(tiles, in);
}

// Holds all tiles across yields and short sleeps until the deadline. This breaks the rule of simd/tiles.h on purpose.
void* run_tester(void* argument) {
  Tester& tester = *static_cast<Tester*>(argument);
  constexpr size_t kBytes = size_t(simd::kTileCount) * simd::kTileBytes;
  alignas(64) unsigned char written[kBytes], read[kBytes];
  (void)amx_request_permission();  // the process has it already
  stay_on_cpu(tester.cpu);
  simd::Tiles tiles(simd::kFullTiles);
  do {
    for (auto& byte : written) {
      tester.seed = tester.seed * 1664525u + 1013904223u;
      byte = static_cast<unsigned char>(tester.seed >> 24);
    }
    load_all<0>(tiles, written);
    if (tester.holds % 8 == 7) {
      const timespec moment = {0, 20000};
      nanosleep(&moment, nullptr);
    } else {
      sched_yield();
    }
    store_all<0>(tiles, read);
    ++tester.holds;
    if (memcmp(written, read, kBytes) != 0) ++tester.losses;
  } while (nanoseconds() < tester.deadline);
  return nullptr;
}

AmxReport detect() {
  AmxReport report;
  report.reason = missing();
  if (*report.reason != '\0') return report;
  if (const int code = amx_request_permission(); code != 0) {
    report.reason = code == ENOSPC ? "a thread's alternate signal stack is too small to save AMX tiles"
                                   : "the system does not let this process use AMX tiles (Linux 5.16 or later does)";
    return report;
  }
  report = amx_self_test(50);
  report.available = report.self_test != AmxSelfTest::failed;
  if (!report.available) report.reason = "this machine loses AMX tiles when a thread is descheduled";
  return report;
}

}  // namespace

int amx_request_permission() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno; }

AmxReport amx_self_test(int milliseconds) {
  AmxReport report;
  Tester testers[2] = {{}, {}};
  const int64_t deadline = nanoseconds() + int64_t(milliseconds) * 1000000;
  for (int i = 0; i < 2; ++i) {
    testers[i].cpu = sched_getcpu();
    testers[i].seed = unsigned(i + 1);
    testers[i].deadline = deadline;
    // One tester alone still sees the idle task; none at all gives no verdict.
    testers[i].started = pthread_create(&testers[i].thread, nullptr, run_tester, &testers[i]) == 0;
  }
  for (Tester& tester : testers) {
    if (!tester.started) continue;
    pthread_join(tester.thread, nullptr);
    report.holds += tester.holds;
    report.losses += tester.losses;
  }
  if (report.holds > 0) report.self_test = report.losses > 0 ? AmxSelfTest::failed : AmxSelfTest::passed;
  return report;
}

const AmxReport& amx_report() {
  static const AmxReport report = detect();
  return report;
}

}  // namespace lapidary

#else  // no tiles on this architecture or system

namespace lapidary {

int amx_request_permission() { return -1; }
AmxReport amx_self_test(int) { return {}; }
const AmxReport& amx_report() {
  static const AmxReport report = {false, "AMX is an extension of x86-64, supported here on Linux"};
  return report;
}

}  // namespace lapidary

#endif
