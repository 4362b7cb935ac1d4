// isa.h: which instruction sets of isa.def this build contains and this machine (processor and operating system)
// allows.
#pragma once
#include <vector>

#include "backends/device.h"

namespace lapidary {

// In overlay order. `active` is false; a device sets it.
std::vector<IsaInfo> detect_isas();

// isa.def's panel_rows and hidden of an ISA by name.
int isa_panel_rows(const std::string& name);
bool isa_hidden(const std::string& name);

}  // namespace lapidary
