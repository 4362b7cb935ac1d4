// calls.cc: enqueue: one crossing for a whole op call.
//
// The call travels in the environment's command array (doubles):
//   in    [op, stream, inputs…, attributes…]     inputs: tensor handles, 0 for an absent optional one; attributes: NaN
//   for the default out   [count, then per output kOutputDoubles: handle, dtype, layout, rank, dims[4]]
#include <cmath>

#include "bridge/environment.h"

namespace lapidary {
namespace {

constexpr int kOutputDoubles = 8;
static_assert(2 + kMaxInputs + 24 <= kCommandDoubles && 1 + kMaxOutputs * kOutputDoubles <= kCommandDoubles);

// The argument's name in messages: "rmsNorm: weight".
std::string argument_name(const Contract& op, const char* argument) { return std::string(op.name) + ": " + argument; }

Status take_inputs(Environment& environment, const Contract& op, const double* handles, const Device& device,
                   OwnedCall& owned) {
  for (int i = 0; i < op.input_count; ++i) {
    const InputSpec& spec = op.inputs[i];
    if (handles[i] == 0) {
      if (spec.optional) continue;
      return error(Code::kInvalidArgument, "%s: %s: expected a tensor, got nothing", op.name, spec.name);
    }
    Status status;
    TensorEntry* entry = environment.find_tensor(handles[i], spec.name, status);
    if (!entry) return Status(status.code(), argument_name(op, status.message().c_str()));
    if (entry->device.get() != &device) {
      return error(Code::kDeviceMismatch, "%s: %s: expected a tensor of the stream's device, got one of another device",
                   op.name, spec.name);
    }
    if (spec.mutated && entry->buffer->read_only()) {
      return error(Code::kInvalidArgument, "%s: %s: the op writes into it, but it is a mapped file (read-only)",
                   op.name, spec.name);
    }
    owned.call.in[i] = entry->view;
    owned.buffers[i] = entry->buffer;
  }
  owned.call.inputs = uint8_t(op.input_count);
  return {};
}

Status take_attributes(const Contract& op, double* values) {
  for (int i = 0; i < op.attribute_count; ++i) {
    const AttributeSpec& spec = op.attributes[i];
    if (std::isnan(values[i])) {
      if (std::isnan(spec.initial))
        return error(Code::kInvalidArgument, "%s: %s: expected a value", op.name, spec.name);
      values[i] = spec.initial;
    }
    const double value = values[i];
    bool valid = true;
    const char* expected = "a number";
    switch (spec.kind) {
      case AttributeKind::number: break;
      case AttributeKind::integer:
        valid = std::floor(value) == value && std::fabs(value) <= 0x1p53;
        expected = "an integer";
        break;
      case AttributeKind::boolean:
        valid = value == 0 || value == 1;
        expected = "a boolean";
        break;
      case AttributeKind::choice: {
        int count = 1;
        for (const char* c = spec.choices; *c; ++c) count += *c == '|';
        valid = std::floor(value) == value && value >= 0 && value < count;
        expected = spec.choices;
        break;
      }
    }
    if (!valid)
      return error(Code::kInvalidArgument, "%s: %s: expected %s, got %g", op.name, spec.name, expected, value);
  }
  return {};
}

// Rejects shapes whose size does not fit: from here on products of dimensions are safe.
Status check_size(const Contract& op, const TensorView& view) {
  __int128 elements = 1;
  for (int i = 0; i < view.rank; ++i) {
    elements *= view.dims[i];
    if (view.dims[i] < 0 || elements > kMaxTensorBytes) {
      return error(Code::kOutOfMemory, "%s: the result %s is larger than any tensor may be", op.name,
                   describe(view).c_str());
    }
  }
  return {};
}

Status enqueue(Environment& environment) {
  double* command = environment.command;
  if (!(command[0] >= 0 && command[0] < double(OpId::kCount))) return error(Code::kInternal, "enqueue: no such op");
  const OpId id = OpId(int(command[0]));
  const Contract& op = contract(id);
  Status status;
  std::shared_ptr<Stream>* stream = environment.streams.find(command[1], "stream", status);
  if (!stream) return status;
  const std::shared_ptr<Device>& device = (*stream)->shared_device();

  std::unique_ptr<OwnedCall> owned = (*stream)->take_call();
  if (!owned) return error(Code::kOutOfMemory, "%s: no memory for the call", op.name);
  owned->call.op = id;
  LAPIDARY_RETURN_IF_ERROR(take_inputs(environment, op, command + 2, *device, *owned));
  double* attributes = command + 2 + op.input_count;
  LAPIDARY_RETURN_IF_ERROR(take_attributes(op, attributes));
  PlanContext context{owned->call, attributes, device->traits()};
  LAPIDARY_RETURN_IF_ERROR(op.plan(context));
  LAPIDARY_RETURN_IF_ERROR(device->resolve(owned->call, owned->step));

  Recorder* recorder = environment.recorder.get();
  if (recorder && recorder->stream() != *stream) {
    return error(Code::kCapture, "%s: while a program is captured, calls go to the stream it is captured for", op.name);
  }
  for (int i = 0; i < owned->call.outputs; ++i) {
    TensorView& view = owned->call.out[i];
    LAPIDARY_RETURN_IF_ERROR(check_size(op, view));
    BufferRef& buffer = owned->buffers[kMaxInputs + i];
    LAPIDARY_RETURN_IF_ERROR(environment.allocate(device, storage_bytes(view), buffer));
    view.data = buffer->data();
  }

  command[0] = owned->call.outputs;
  for (int i = 0; i < owned->call.outputs; ++i) {
    const TensorView& view = owned->call.out[i];
    double* out = command + 1 + i * kOutputDoubles;
    status = environment.add_tensor(view, owned->buffers[kMaxInputs + i], device, true, out[0]);
    if (!status.ok()) {
      while (i-- > 0) environment.remove_tensor(command[1 + i * kOutputDoubles]);
      return status;
    }
    out[1] = double(view.dtype);
    out[2] = double(view.layout);
    out[3] = view.rank;
    for (int axis = 0; axis < kMaxRank; ++axis) out[4 + axis] = double(view.dims[axis]);
  }
  if (recorder) {
    recorder->append(std::move(owned));
  } else {
    (*stream)->push(std::move(owned));
  }
  return {};
}

// Plain Node-API: the C++ wrapper's argument objects would double the cost of this crossing.
napi_value enqueue_callback(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  size_t count = 0;
  napi_get_cb_info(env, info, &count, nullptr, nullptr, &data);
  throw_if_error(env, enqueue(*static_cast<Environment*>(data)));
  return nullptr;
}

}  // namespace

void export_calls(Napi::Env env, Napi::Object exports) {
  Environment& environment = Environment::of(env);
  napi_value function;
  napi_create_function(env, "enqueue", NAPI_AUTO_LENGTH, &enqueue_callback, &environment, &function);
  exports.Set("enqueue", Napi::Value(env, function));
  exports.Set("command", environment.command_reference.Value());
}

}  // namespace lapidary
