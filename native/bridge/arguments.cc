#include "bridge/arguments.h"

#include <cmath>

#include "ops/contract.h"

namespace lapidary {

double number_argument(const Napi::CallbackInfo& info, size_t index) {
  double value = NAN;
  if (index < info.Length()) napi_get_value_double(info.Env(), info[index], &value);
  return value;
}

std::string string_argument(const Napi::CallbackInfo& info, size_t index) {
  return index < info.Length() && info[index].IsString() ? info[index].As<Napi::String>().Utf8Value() : std::string();
}

bool boolean_argument(const Napi::CallbackInfo& info, size_t index) {
  return index < info.Length() && info[index].IsBoolean() && info[index].As<Napi::Boolean>().Value();
}

Status numbers_argument(const Napi::CallbackInfo& info, size_t index, size_t limit, std::vector<double>& out) {
  if (index >= info.Length() || !info[index].IsArray()) return error(Code::kInternal, "expected an array of numbers");
  const Napi::Array array = info[index].As<Napi::Array>();
  if (array.Length() > limit) {
    return error(Code::kInvalidArgument, "expected at most %zu entries, got %u", limit, array.Length());
  }
  for (uint32_t i = 0; i < array.Length(); ++i) {
    double value = NAN;
    napi_get_value_double(info.Env(), array.Get(i), &value);
    out.push_back(value);
  }
  return {};
}

Status form_argument(const Napi::CallbackInfo& info, size_t dtype_index, size_t dims_index, const char* what,
                     TensorView& out) {
  const double dtype = number_argument(info, dtype_index);
  if (!(dtype >= 0 && dtype < double(DType::kCount))) return error(Code::kInternal, "%s: no such dtype", what);
  std::vector<double> dims;
  Status status = numbers_argument(info, dims_index, kMaxRank, dims);
  if (!status.ok()) return error(status.code(), "%s: shape: %s", what, status.message().c_str());
  out = TensorView();
  out.dtype = DType(int(dtype));
  out.rank = uint8_t(dims.size());
  double bytes = double(lapidary::info(out.dtype).block_bytes) / lapidary::info(out.dtype).block;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (!(dims[i] >= 0) || std::floor(dims[i]) != dims[i]) {
      return error(Code::kInvalidArgument, "%s: shape: expected non-negative integers, got %g at %zu", what, dims[i],
                   i);
    }
    bytes *= dims[i];
    out.dims[i] = dims[i] < 0x1p53 ? int64_t(dims[i]) : 0;
    if (!(dims[i] < 0x1p53)) bytes = INFINITY;
  }
  if (!(bytes <= double(kMaxTensorBytes))) {
    return error(Code::kOutOfMemory, "%s: shape: the tensor is larger than any may be (%g bytes)", what, bytes);
  }
  const int block = lapidary::info(out.dtype).block;
  if (block > 1 && (out.rank == 0 || out.dims[out.rank - 1] % block != 0)) {
    return error(Code::kShapeMismatch,
                 "%s: shape: %s stores %d elements to a block: expected a last dimension divisible by it, got %s", what,
                 lapidary::info(out.dtype).name, block, describe(out).c_str());
  }
  int64_t stride = 1;
  for (int i = out.rank - 1; i >= 0; --i) {
    out.strides[i] = stride;
    stride *= out.dims[i];
  }
  return {};
}

Bytes bytes_of(const Napi::Value& value) {
  const napi_env env = value.Env();
  if (value.IsTypedArray()) {
    napi_typedarray_type type;
    size_t length = 0, offset = 0;
    void* data = nullptr;
    napi_value buffer;
    napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, &offset);
    return {data, value.As<Napi::TypedArray>().ByteLength(), true};
  }
  if (value.IsDataView()) {
    size_t length = 0, offset = 0;
    void* data = nullptr;
    napi_value buffer;
    napi_get_dataview_info(env, value, &length, &data, &buffer, &offset);
    return {data, length, true};
  }
  return {};
}

Bytes bytes_argument(const Napi::CallbackInfo& info, size_t index) {
  return index < info.Length() ? bytes_of(info[index]) : Bytes();
}

}  // namespace lapidary
