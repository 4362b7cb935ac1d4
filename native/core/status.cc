#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace lapidary {

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk: return "OK";
#define LAPIDARY_ERROR(enumerator, name, meaning) \
  case Code::enumerator:                          \
    return name;
#include "core/error_codes.def"
#undef LAPIDARY_ERROR
  }
  return "ERR_INTERNAL";
}

Status error(Code code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return Status(code, text);
}

}  // namespace lapidary
