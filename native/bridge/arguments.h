// arguments.h: reading the arguments that lib/native.ts passes. lib/ checks types first; these keep a mistake from
// becoming a crash.
#pragma once
#include <napi.h>

#include <string>

#include "core/status.h"
#include "core/tensor_view.h"

namespace lapidary {

// NaN where the argument is absent or not a number.
double number_argument(const Napi::CallbackInfo& info, size_t index);
std::string string_argument(const Napi::CallbackInfo& info, size_t index);
bool boolean_argument(const Napi::CallbackInfo& info, size_t index);

// The numbers of an array argument, at most `limit`.
Status numbers_argument(const Napi::CallbackInfo& info, size_t index, size_t limit, std::vector<double>& out);

// A contiguous view of dtype and dims given as (dtype index, dims array) arguments, checked against kMaxTensorBytes and
// the dtype's block size. `data` stays null.
Status form_argument(const Napi::CallbackInfo& info, size_t dtype_index, size_t dims_index, const char* what,
                     TensorView& out);

// Memory of a typed array or DataView.
struct Bytes {
  const void* data = nullptr;
  size_t count = 0;
  bool present = false;
};
Bytes bytes_of(const Napi::Value& value);
Bytes bytes_argument(const Napi::CallbackInfo& info, size_t index);

}  // namespace lapidary
