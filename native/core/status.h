// status.h: the result of everything below the bridge. Nothing there throws, prints or exits.
#pragma once
#include <string>
#include <utility>

#include "core/error_code.h"

namespace lapidary {

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  // What was expected, what came, and for which argument.
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// The format strings of the C library that is linked: MinGW has two.
#if defined(__MINGW32__)
#define LAPIDARY_PRINTF gnu_printf
#else
#define LAPIDARY_PRINTF printf
#endif

// "ERR_…" of a code.
const char* code_name(Code code);

// A Status whose message is formatted like printf.
__attribute__((format(LAPIDARY_PRINTF, 2, 3))) Status error(Code code, const char* format, ...);

}  // namespace lapidary

// Returns early from a function that itself returns Status.
#define LAPIDARY_RETURN_IF_ERROR(expression)   \
  do {                                         \
    ::lapidary::Status status_ = (expression); \
    if (!status_.ok()) return status_;         \
  } while (0)
