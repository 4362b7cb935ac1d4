// amx.h: may this process use AMX tiles, and do they keep their contents?
//
// Three gates: the processor has them (CPUID), the system saves them (XCR0), and the system lets this process use them
// (arch_prctl; Linux 5.16 on). Then a self-test, because some virtual machines lose tile contents when a thread is
// descheduled (github.com/WizardSource/Kurn, integration/README.md): a machine that loses tiles has no AMX as far as
// kernels are concerned.
#pragma once
#include <cstdint>

namespace lapidary {

enum class AmxSelfTest : uint8_t { skipped, passed, failed };

struct AmxReport {
  bool available = false;
  const char* reason = "";  // why not, when not available
  AmxSelfTest self_test = AmxSelfTest::skipped;
  int holds = 0;   // times the self-test held all tiles across a yield
  int losses = 0;  // times they came back changed
};

// Detection, permission and self-test, once per process (about 50 ms where AMX is present); later calls return the
// same. Thread-safe. The kernel refuses permission when some thread's alternate signal stack is too small to save tiles
// on, and refuses such stacks afterwards: call this before creating threads that have one.
const AmxReport& amx_report();

// Asks for permission to use tiles. It is the process's by the documentation (kernel.org, x86/xstate), but one report
// has it per thread (ggml-org/llama.cpp#26954): every worker repeats it when it starts. Idempotent. Returns 0 or an
// errno value.
int amx_request_permission();

// The self-test alone: for about `milliseconds`, two threads on one CPU fill their tiles, yield to each other and to
// the idle task, and compare. Executes AMX instructions: only after amx_request_permission() has succeeded.
AmxReport amx_self_test(int milliseconds);

}  // namespace lapidary
