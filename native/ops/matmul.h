#pragma once
#include "ops/call.h"
namespace lapidary {
enum class MatmulEpilogue : uint8_t { none, geglu };
struct MatmulParams {
  MatmulEpilogue epilogue;
};
}  // namespace lapidary
