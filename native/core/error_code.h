// error_code.h: the numeric form of an error, cheap enough for kernels. Texts are in error_codes.def.
#pragma once
#include <cstdint>

namespace lapidary {

enum class Code : uint8_t {
  kOk = 0,
#define LAPIDARY_ERROR(enumerator, code, meaning) enumerator,
#include "error_codes.def"
#undef LAPIDARY_ERROR
};

}  // namespace lapidary
