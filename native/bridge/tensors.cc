// tensors.cc: making, viewing, writing, reading and releasing tensors.
#include <cmath>
#include <cstring>

#include "bridge/arguments.h"
#include "bridge/environment.h"
#include "core/mapped_file.h"
#include "ops/packed_form.h"
#include "ops/weight_panels.h"
#include "runtime/file_transfer.h"

namespace lapidary {
namespace {

struct ReadCompletion final : PromiseCompletion {
  napi_value value(napi_env env) override { return to_array_buffer(env, bytes.get(), byte_count); }
};

// A new tensor's handle as a verb returns it.
Napi::Value to_handle(Environment& environment, const TensorView& view, BufferRef buffer,
                      const std::shared_ptr<Device>& device, bool owns_memory) {
  double handle = 0;
  const Status status = environment.add_tensor(view, std::move(buffer), device, owns_memory, handle);
  if (throw_if_error(environment.env, status)) return {};
  return Napi::Number::New(environment.env, handle);
}

// createTensor(device, dtype, dims, bytes | undefined) → handle. Without bytes the memory is zero.
Napi::Value create_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* device = environment.devices.find(number_argument(info, 0), "Tensor", status);
  TensorView view;
  if (device) status = form_argument(info, 1, 2, "Tensor", view);
  if (throw_if_error(info.Env(), status)) return {};
  const int64_t bytes = storage_bytes(view);
  const Bytes source = bytes_argument(info, 3);
  if (source.present && int64_t(source.count) != bytes) {
    throw_if_error(info.Env(), error(Code::kShapeMismatch, "Tensor: data: expected %lld bytes for %s, got %zu",
                                     (long long)bytes, describe(view).c_str(), source.count));
    return {};
  }
  BufferRef buffer;
  if (throw_if_error(info.Env(), (*device)->allocate(bytes, buffer))) return {};
  // Nothing in flight can see this memory yet: no need to go through a stream.
  if (source.present) {
    (*device)->copy_in(buffer->data(), source.data, size_t(bytes));
  } else {
    (*device)->fill_zero(buffer->data(), size_t(bytes));
  }
  view.data = buffer->data();
  return to_handle(environment, view, std::move(buffer), *device, true);
}

// A byte offset in a file.
Status offset_argument(const Napi::CallbackInfo& info, size_t index, const char* what, int64_t& out) {
  const double offset = number_argument(info, index);
  if (!(offset >= 0 && offset < 0x1p53 && std::floor(offset) == offset))
    return error(Code::kInvalidArgument, "%s: offset: expected a non-negative integer, got %g", what, offset);
  out = int64_t(offset);
  return {};
}

// A packed tensor's form crosses as numbers, in this order.
enum FormNumber { kLayoutVersion, kPanelRows, kGroup, kScaleDtype, kFlags, kBytes, kFormNumbers };

// Gives `view`, contiguous so far, the packed form in an argument that may be absent.
Status packed_form_argument(const Napi::CallbackInfo& info, size_t index, const DeviceTraits& device, const char* what,
                            TensorView& view) {
  if (index >= info.Length() || info[index].IsUndefined()) return {};
  std::vector<double> numbers;
  LAPIDARY_RETURN_IF_ERROR(numbers_argument(info, index, kFormNumbers, numbers));
  if (numbers.size() != kFormNumbers)
    return error(Code::kInternal, "%s: form: expected %d numbers", what, kFormNumbers);
  if (numbers[kLayoutVersion] != device.panel_layout) {
    return error(Code::kLayoutUnsupported, "%s: form: layoutVersion: expected %d, as %s kernels read it, got %g", what,
                 device.panel_layout, device.isa, numbers[kLayoutVersion]);
  }
  for (int i : {kPanelRows, kGroup, kScaleDtype, kFlags}) {
    if (!(numbers[i] >= 0 && numbers[i] <= 255) || std::floor(numbers[i]) != numbers[i])
      return error(Code::kLayoutUnsupported, "%s: form: expected an integer from 0 to 255, got %g", what, numbers[i]);
  }
  view.layout = Layout::panels;
  view.panel_rows = uint8_t(numbers[kPanelRows]);
  view.group = uint16_t(numbers[kGroup]);
  view.scale_dtype = uint8_t(numbers[kScaleDtype]);
  view.flags = uint8_t(numbers[kFlags]);
  LAPIDARY_RETURN_IF_ERROR(expect_readable_panels(view, device, what));
  const int64_t bytes = storage_bytes(view);
  if (numbers[kBytes] == double(bytes)) return {};
  return error(Code::kShapeMismatch, "%s: form: bytes: expected %lld for %s, got %.0f", what, (long long)bytes,
               describe(view).c_str(), numbers[kBytes]);
}

// loadTensor(stream, path, offset, dtype, dims, form | undefined) → handle
Napi::Value load_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "Tensor.load", status);
  TensorView view;
  int64_t offset = 0;
  if (stream) status = form_argument(info, 3, 4, "Tensor.load", view);
  if (status.ok()) status = packed_form_argument(info, 5, (*stream)->device().traits(), "Tensor.load", view);
  if (status.ok()) status = offset_argument(info, 2, "Tensor.load", offset);
  std::shared_ptr<OpenFile> file;
  if (status.ok()) status = open_file(string_argument(info, 1), offset, storage_bytes(view), "Tensor.load", file);
  BufferRef buffer;
  if (status.ok()) status = (*stream)->device().allocate(storage_bytes(view), buffer);
  if (throw_if_error(info.Env(), status)) return {};
  view.data = buffer->data();
  const BoundTensor tensor{view, buffer};
  Napi::Value handle = to_handle(environment, view, std::move(buffer), (*stream)->shared_device(), true);
  if (!handle.IsEmpty()) push_load(**stream, tensor, std::move(file), offset);
  return handle;
}

// packedForm(tensor) → [layoutVersion, panelRows, group, scaleDtype, flags, bytes]
Napi::Value packed_form(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  TensorEntry* entry = environment.find_tensor(number_argument(info, 0), "packedForm", status);
  if (entry && entry->view.layout != Layout::panels) {
    status =
        error(Code::kLayoutUnsupported, "packedForm: expected packed weights, got %s", describe(entry->view).c_str());
  }
  if (throw_if_error(info.Env(), status)) return {};
  const TensorView& view = entry->view;
  const double numbers[kFormNumbers] = {double(entry->device->traits().panel_layout),
                                        double(view.panel_rows),
                                        double(view.group),
                                        double(view.scale_dtype),
                                        double(view.flags),
                                        double(storage_bytes(view))};
  Napi::Array array = Napi::Array::New(info.Env(), kFormNumbers);
  for (uint32_t i = 0; i < kFormNumbers; ++i) array.Set(i, numbers[i]);
  return array;
}

// mapTensor(device, path, offset, dtype, dims) → handle
Napi::Value map_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* device = environment.devices.find(number_argument(info, 0), "Tensor.map", status);
  TensorView view;
  if (device) status = form_argument(info, 3, 4, "Tensor.map", view);
  int64_t offset = 0;
  if (status.ok()) status = offset_argument(info, 2, "Tensor.map", offset);
  BufferRef buffer;
  if (status.ok()) status = map_file(string_argument(info, 1), offset, storage_bytes(view), buffer);
  if (status.ok()) status = (*device)->import_file(std::move(buffer), buffer);
  if (throw_if_error(info.Env(), status)) return {};
  view.data = buffer->data();
  return to_handle(environment, view, std::move(buffer), *device, false);
}

Napi::Value add_view(Environment& environment, const TensorEntry& base, const TensorView& view) {
  return to_handle(environment, view, base.buffer, base.device, false);
}

// sliceTensor(tensor, axis, start, end) → handle
Napi::Value slice_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  TensorEntry* base = environment.find_tensor(number_argument(info, 0), "slice", status);
  if (throw_if_error(info.Env(), status)) return {};
  TensorView view = base->view;
  const double axis = number_argument(info, 1), start = number_argument(info, 2), end = number_argument(info, 3);
  const int block = lapidary::info(view.dtype).block;
  if (!(axis >= 0 && axis < view.rank && std::floor(axis) == axis)) {
    status = error(Code::kInvalidArgument, "slice: axis: expected 0 to %d, got %g", view.rank - 1, axis);
  } else if (!(start >= 0 && start <= end && end <= double(view.dims[int(axis)])) || std::floor(start) != start ||
             std::floor(end) != end) {
    status = error(Code::kInvalidArgument, "slice: expected 0 ≤ start ≤ end ≤ %lld, got %g and %g",
                   (long long)view.dims[int(axis)], start, end);
  } else if (view.layout == Layout::panels) {
    status = error(Code::kLayoutUnsupported, "slice: packed weights cannot be sliced, got %s", describe(view).c_str());
  } else if (block > 1 && axis != 0) {
    status = error(Code::kLayoutUnsupported, "slice: %s can be sliced along its first dimension only",
                   lapidary::info(view.dtype).name);
  }
  if (throw_if_error(info.Env(), status)) return {};
  const int64_t elements = int64_t(start) * view.strides[int(axis)];
  view.data += elements / block * lapidary::info(view.dtype).block_bytes;
  view.dims[int(axis)] = int64_t(end) - int64_t(start);
  return add_view(environment, *base, view);
}

// reshapeTensor(tensor, dims) → handle
Napi::Value reshape_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  TensorEntry* base = environment.find_tensor(number_argument(info, 0), "reshape", status);
  std::vector<double> dims;
  if (base) status = numbers_argument(info, 1, kMaxRank, dims);
  if (throw_if_error(info.Env(), status)) return {};
  TensorView view = base->view;
  double elements = 1;
  view.rank = uint8_t(dims.size());
  for (size_t i = 0; i < dims.size(); ++i) {
    if (!(dims[i] >= 0 && dims[i] < 0x1p53) || std::floor(dims[i]) != dims[i]) {
      status = error(Code::kInvalidArgument, "reshape: expected non-negative integers, got %g at %zu", dims[i], i);
    }
    elements *= dims[i];
    view.dims[i] = status.ok() ? int64_t(dims[i]) : 0;
  }
  const int block = lapidary::info(view.dtype).block;
  if (status.ok() && (view.layout == Layout::panels || !is_contiguous(base->view))) {
    status =
        error(Code::kLayoutUnsupported, "reshape: expected a contiguous tensor, got %s", describe(base->view).c_str());
  } else if (status.ok() && (elements != double(element_count(base->view)) ||
                             (block > 1 && (view.rank == 0 || view.dims[view.rank - 1] % block != 0)))) {
    status = error(Code::kShapeMismatch, "reshape: expected a shape of %lld elements in whole blocks, got %s",
                   (long long)element_count(base->view), describe(view).c_str());
  }
  if (throw_if_error(info.Env(), status)) return {};
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.strides[i] = stride;
    stride *= view.dims[i];
  }
  return add_view(environment, *base, view);
}

// writeTensor(stream, tensor, bytes)
void write_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "write", status);
  TensorEntry* entry = stream ? environment.find_tensor(number_argument(info, 1), "write", status) : nullptr;
  if (throw_if_error(info.Env(), status)) return;
  const Bytes source = bytes_argument(info, 2);
  const TensorView& view = entry->view;
  if (entry->buffer->planned()) {
    status = error(Code::kCapture, "write: not possible while a program is captured");
  } else if (entry->device != (*stream)->shared_device()) {
    status = error(Code::kDeviceMismatch, "write: the tensor is on another device than the stream");
  } else if (entry->buffer->read_only()) {
    status = error(Code::kInvalidArgument, "write: the tensor is a mapped file (read-only)");
  } else if (view.layout != Layout::strided || !is_contiguous(view)) {
    status = error(Code::kLayoutUnsupported, "write: expected a contiguous tensor, got %s", describe(view).c_str());
  } else if (!source.present || int64_t(source.count) != storage_bytes(view)) {
    status = error(Code::kShapeMismatch, "write: data: expected %lld bytes for %s, got %zu",
                   (long long)storage_bytes(view), describe(view).c_str(), source.count);
  }
  if (throw_if_error(info.Env(), status)) return;
  throw_if_error(info.Env(), (*stream)->push_write(view, entry->buffer, source.data, source.count));
}

// readTensor(stream, tensor) → Promise<ArrayBuffer>
Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "read", status);
  TensorEntry* entry = stream ? environment.find_tensor(number_argument(info, 1), "read", status) : nullptr;
  if (entry && entry->buffer->planned())
    status = error(Code::kCapture, "read: not possible while a program is captured");
  if (entry && status.ok() && entry->device != (*stream)->shared_device()) {
    status = error(Code::kDeviceMismatch, "read: the tensor is on another device than the stream");
  }
  if (throw_if_error(info.Env(), status)) return {};
  auto completion = std::make_unique<ReadCompletion>();
  napi_value promise = environment.completions->expect(info.Env(), *completion);
  (*stream)->push_read({{entry->view, entry->buffer}}, std::move(completion));
  return Napi::Value(info.Env(), promise);
}

struct SaveCompletion final : PromiseCompletion {
  napi_value value(napi_env env) override { return Napi::Number::New(env, double(byte_count)); }
};

// saveTensor(stream, tensor, path, offset) → Promise<bytes>
Napi::Value save_tensor(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "Tensor.save", status);
  TensorEntry* entry = stream ? environment.find_tensor(number_argument(info, 1), "Tensor.save", status) : nullptr;
  int64_t offset = 0;
  if (entry) status = offset_argument(info, 3, "Tensor.save", offset);
  if (!status.ok()) {
  } else if (entry->buffer->planned()) {
    status = error(Code::kCapture, "Tensor.save: not possible while a program is captured");
  } else if (entry->device != (*stream)->shared_device()) {
    status = error(Code::kDeviceMismatch, "Tensor.save: the tensor is on another device than the stream");
  } else if (entry->view.layout != Layout::panels && !is_contiguous(entry->view)) {
    status = error(Code::kLayoutUnsupported, "Tensor.save: expected a contiguous tensor, got %s",
                   describe(entry->view).c_str());
  }
  if (throw_if_error(info.Env(), status)) return {};
  auto completion = std::make_unique<SaveCompletion>();
  napi_value promise = environment.completions->expect(info.Env(), *completion);
  push_save(**stream, {entry->view, entry->buffer}, string_argument(info, 2), offset, std::move(completion));
  return Napi::Value(info.Env(), promise);
}

// releasePages(tensor)
void release_pages(const Napi::CallbackInfo& info) {
  Status status;
  TensorEntry* tensor = Environment::of(info.Env()).find_tensor(number_argument(info, 0), "releasePages", status);
  if (throw_if_error(info.Env(), status)) return;
  tensor->buffer->release_pages();
}

// releaseTensor(handle): no error where it is not live (garbage collection and dispose() may both get here).
void release_tensor(const Napi::CallbackInfo& info) {
  Environment::of(info.Env()).remove_tensor(number_argument(info, 0));
}

}  // namespace

void export_tensors(Napi::Env env, Napi::Object exports) {
  exports.Set("createTensor", Napi::Function::New<create_tensor>(env));
  exports.Set("mapTensor", Napi::Function::New<map_tensor>(env));
  exports.Set("loadTensor", Napi::Function::New<load_tensor>(env));
  exports.Set("saveTensor", Napi::Function::New<save_tensor>(env));
  exports.Set("packedForm", Napi::Function::New<packed_form>(env));
  exports.Set("sliceTensor", Napi::Function::New<slice_tensor>(env));
  exports.Set("reshapeTensor", Napi::Function::New<reshape_tensor>(env));
  exports.Set("writeTensor", Napi::Function::New<write_tensor>(env));
  exports.Set("readTensor", Napi::Function::New<read_tensor>(env));
  exports.Set("releasePages", Napi::Function::New<release_pages>(env));
  exports.Set("releaseTensor", Napi::Function::New<release_tensor>(env));
}

}  // namespace lapidary
