// programs.cc: capturing and replaying programs.
#include "bridge/arguments.h"
#include "bridge/environment.h"

namespace lapidary {
namespace {

constexpr size_t kMaxProgramTensors = 4096;

// [handle, dtype, layout, rank, dims…] of a tensor, as lib/tensor.ts reads it.
Napi::Array describe_tensor(Napi::Env env, double handle, const TensorView& view) {
  Napi::Array array = Napi::Array::New(env);
  array.Set(0u, handle);
  array.Set(1u, double(view.dtype));
  array.Set(2u, double(view.layout));
  for (int i = 0; i < view.rank; ++i) array.Set(uint32_t(3 + i), double(view.dims[i]));
  return array;
}

// beginCapture(stream)
void begin_capture(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "Program.capture", status);
  if (stream && environment.recorder)
    status = error(Code::kCapture, "Program.capture: another program is being captured");
  if (throw_if_error(info.Env(), status)) return;
  environment.recorder = std::make_unique<Recorder>(*stream);
}

// captureInput(dtype, dims) → handle
Napi::Value capture_input(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  TensorView form;
  Status status = environment.recorder ? form_argument(info, 0, 1, "Program.capture: input", form)
                                       : error(Code::kCapture, "Program.capture: no capture is in progress");
  if (throw_if_error(info.Env(), status)) return {};
  BoundTensor input = environment.recorder->add_input(form);
  double handle = 0;
  status = environment.add_tensor(input.view, std::move(input.buffer), environment.recorder->stream()->shared_device(),
                                  false, handle);
  if (throw_if_error(info.Env(), status)) return {};
  return Napi::Number::New(info.Env(), handle);
}

// A tensor that a program on `device` may be bound to.
Status bound_tensor(Environment& environment, double handle, const char* what, const Device& device, BoundTensor& out) {
  Status status;
  TensorEntry* entry = environment.find_tensor(handle, what, status);
  if (!entry) return status;
  if (entry->device.get() != &device) {
    return error(Code::kDeviceMismatch, "%s: expected a tensor of the program's device, got one of another", what);
  }
  out = {entry->view, entry->buffer};
  return {};
}

// A program's input that came as JavaScript's memory: copied into fresh memory of the device, which nothing in flight
// can see yet.
Status copied_input(const Program& program, size_t index, const Bytes& source, BoundTensor& out) {
  out.view = program.inputs()[index].view;
  const int64_t bytes = storage_bytes(out.view);
  if (int64_t(source.count) != bytes) {
    return error(Code::kShapeMismatch, "program.run: input %zu: expected %lld bytes for %s, got %zu", index,
                 (long long)bytes, describe(out.view).c_str(), source.count);
  }
  Device& device = program.stream()->device();
  LAPIDARY_RETURN_IF_ERROR(device.allocate(bytes, out.buffer));
  device.copy_in(out.buffer->data(), source.data, source.count);
  out.view.data = out.buffer->data();
  return {};
}

// endCapture(outputs: handle[], arena: program handle or 0) → program handle; the capture ends whether this succeeds or
// not.
Napi::Value end_capture(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  if (!environment.recorder) {
    throw_if_error(info.Env(), error(Code::kCapture, "Program.capture: no capture is in progress"));
    return {};
  }
  std::vector<double> handles;
  std::vector<BoundTensor> outputs;
  Status status = numbers_argument(info, 0, kMaxProgramTensors, handles);
  for (size_t i = 0; status.ok() && i < handles.size(); ++i) {
    outputs.emplace_back();
    status = bound_tensor(environment, handles[i], "Program.capture: output", environment.recorder->stream()->device(),
                          outputs.back());
  }
  const Program* arena = nullptr;
  if (const double handle = number_argument(info, 1); status.ok() && handle != 0) {
    auto* other = environment.programs.find(handle, "Program.capture: arena", status);
    if (other) arena = other->get();
  }
  std::shared_ptr<Program> program;
  if (status.ok()) status = environment.recorder->finish(outputs, arena, program);
  environment.recorder.reset();
  double handle = 0;
  if (status.ok()) status = environment.programs.add(std::move(program), "programs", handle);
  if (throw_if_error(info.Env(), status)) return {};
  return Napi::Number::New(info.Env(), handle);
}

void abort_capture(const Napi::CallbackInfo& info) { Environment::of(info.Env()).recorder.reset(); }

// Queues a replay of the program in argument 0 with the inputs in argument 1, each a tensor handle or a view of
// JavaScript's memory.
Status replay(Environment& environment, const Napi::CallbackInfo& info, std::shared_ptr<Program>& program,
              std::vector<BoundTensor>& outputs) {
  Status status;
  auto* found = environment.programs.find(number_argument(info, 0), "program.run", status);
  if (!found) return status;
  program = *found;
  if (environment.recorder) return error(Code::kCapture, "program.run: not possible while a program is captured");
  if (info.Length() < 2 || !info[1].IsArray()) return error(Code::kInternal, "program.run: expected an array");
  const Napi::Array given = info[1].As<Napi::Array>();
  if (given.Length() != program->inputs().size()) {
    return error(Code::kInvalidArgument, "program.run: expected %zu inputs, got %u", program->inputs().size(),
                 given.Length());
  }
  std::vector<BoundTensor> inputs(given.Length());
  for (uint32_t i = 0; i < given.Length(); ++i) {
    const Napi::Value value = given.Get(i);
    double handle = 0;
    if (napi_get_value_double(info.Env(), value, &handle) == napi_ok) {
      LAPIDARY_RETURN_IF_ERROR(
          bound_tensor(environment, handle, "program.run: input", program->stream()->device(), inputs[i]));
    } else {
      LAPIDARY_RETURN_IF_ERROR(copied_input(*program, i, bytes_of(value), inputs[i]));
    }
  }
  return program->replay(inputs, outputs);
}

// runProgram(program, inputs: (handle | view)[]) → [[handle, dtype, layout, dims…], …]
Napi::Value run_program(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  std::shared_ptr<Program> program;
  std::vector<BoundTensor> outputs;
  if (throw_if_error(info.Env(), replay(environment, info, program, outputs))) return {};
  Napi::Array result = Napi::Array::New(info.Env(), outputs.size());
  std::vector<double> handles(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const TensorView view = outputs[i].view;
    const Status status = environment.add_tensor(view, std::move(outputs[i].buffer), program->stream()->shared_device(),
                                                 true, handles[i]);
    if (!status.ok()) {
      while (i-- > 0) environment.remove_tensor(handles[i]);
      throw_if_error(info.Env(), status);
      return {};
    }
    result.Set(uint32_t(i), describe_tensor(info.Env(), handles[i], view));
  }
  return result;
}

struct ExecuteCompletion final : PromiseCompletion {
  napi_value value(napi_env env) override {
    napi_value array = nullptr;
    if (napi_create_array_with_length(env, part_bytes.size(), &array) != napi_ok) return nullptr;
    const unsigned char* from = bytes.get();
    for (size_t i = 0; i < part_bytes.size(); ++i) {
      napi_value buffer = to_array_buffer(env, from, part_bytes[i]);
      if (!buffer || napi_set_element(env, array, uint32_t(i), buffer) != napi_ok) return nullptr;
      from += part_bytes[i];
    }
    return array;
  }
};

// executeProgram(program, inputs: (handle | view)[]) → Promise<ArrayBuffer[]>: a replay, and what its outputs hold.
Napi::Value execute_program(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  std::shared_ptr<Program> program;
  std::vector<BoundTensor> outputs;
  if (throw_if_error(info.Env(), replay(environment, info, program, outputs))) return {};
  auto completion = std::make_unique<ExecuteCompletion>();
  napi_value promise = environment.completions->expect(info.Env(), *completion);
  program->stream()->push_read(std::move(outputs), std::move(completion));
  return Napi::Value(info.Env(), promise);
}

Napi::Value program_info(const Napi::CallbackInfo& info) {
  Status status;
  auto* program = Environment::of(info.Env()).programs.find(number_argument(info, 0), "program.info", status);
  if (throw_if_error(info.Env(), status)) return {};
  const ProgramInfo& details = (*program)->info();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("calls", double(details.calls));
  object.Set("arenaBytes", double(details.arena_bytes));
  object.Set("intermediateBytes", double(details.intermediate_bytes));
  object.Set("sharesArena", details.shares_arena);
  return object;
}

void release_program(const Napi::CallbackInfo& info) {
  std::shared_ptr<Program> program;
  Environment::of(info.Env()).programs.remove(number_argument(info, 0), program);
}

}  // namespace

void export_programs(Napi::Env env, Napi::Object exports) {
  exports.Set("beginCapture", Napi::Function::New<begin_capture>(env));
  exports.Set("captureInput", Napi::Function::New<capture_input>(env));
  exports.Set("endCapture", Napi::Function::New<end_capture>(env));
  exports.Set("abortCapture", Napi::Function::New<abort_capture>(env));
  exports.Set("runProgram", Napi::Function::New<run_program>(env));
  exports.Set("executeProgram", Napi::Function::New<execute_program>(env));
  exports.Set("programInfo", Napi::Function::New<program_info>(env));
  exports.Set("releaseProgram", Napi::Function::New<release_program>(env));
}

}  // namespace lapidary
