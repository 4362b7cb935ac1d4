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
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  const int length = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  std::string message(text);
  if (length >= int(sizeof text)) {  // a long path
    message.resize(size_t(length) + 1);
    vsnprintf(message.data(), message.size(), format, again);
    message.pop_back();
  }
  va_end(again);
  return Status(code, std::move(message));
}

}  // namespace lapidary
