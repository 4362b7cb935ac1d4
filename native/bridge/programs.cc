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
  return Napi::Number::New(info.Env(), environment.add_tensor(input.view, std::move(input.buffer),
                                                              environment.recorder->stream()->shared_device(), false));
}

Status bound_tensors(Environment& environment, const Napi::CallbackInfo& info, size_t index, const char* what,
                     const Device& device, std::vector<BoundTensor>& out) {
  std::vector<double> handles;
  LAPIDARY_RETURN_IF_ERROR(numbers_argument(info, index, kMaxProgramTensors, handles));
  for (double handle : handles) {
    Status status;
    TensorEntry* entry = environment.find_tensor(handle, what, status);
    if (!entry) return status;
    if (entry->device.get() != &device) {
      return error(Code::kDeviceMismatch, "%s: expected a tensor of the program's device, got one of another", what);
    }
    out.push_back({entry->view, entry->buffer});
  }
  return {};
}

// endCapture(outputs: handle[]) → program handle; the capture ends whether this succeeds or not.
Napi::Value end_capture(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  if (!environment.recorder) {
    throw_if_error(info.Env(), error(Code::kCapture, "Program.capture: no capture is in progress"));
    return {};
  }
  std::vector<BoundTensor> outputs;
  Status status =
      bound_tensors(environment, info, 0, "Program.capture: output", environment.recorder->stream()->device(), outputs);
  std::shared_ptr<Program> program;
  if (status.ok()) status = environment.recorder->finish(outputs, program);
  environment.recorder.reset();
  if (throw_if_error(info.Env(), status)) return {};
  return Napi::Number::New(info.Env(), environment.programs.add(std::move(program)));
}

void abort_capture(const Napi::CallbackInfo& info) { Environment::of(info.Env()).recorder.reset(); }

// runProgram(program, inputs: handle[]) → [[handle, dtype, layout, dims…], …]
Napi::Value run_program(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* program = environment.programs.find(number_argument(info, 0), "program.run", status);
  if (program && environment.recorder)
    status = error(Code::kCapture, "program.run: not possible while a program is captured");
  std::vector<BoundTensor> inputs, outputs;
  if (status.ok()) {
    status = bound_tensors(environment, info, 1, "program.run: input", (*program)->stream()->device(), inputs);
  }
  if (status.ok()) status = (*program)->replay(inputs, outputs);
  if (throw_if_error(info.Env(), status)) return {};
  Napi::Array result = Napi::Array::New(info.Env(), outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const TensorView view = outputs[i].view;
    const double handle =
        environment.add_tensor(view, std::move(outputs[i].buffer), (*program)->stream()->shared_device(), true);
    result.Set(uint32_t(i), describe_tensor(info.Env(), handle, view));
  }
  return result;
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
  exports.Set("programInfo", Napi::Function::New<program_info>(env));
  exports.Set("releaseProgram", Napi::Function::New<release_program>(env));
}

}  // namespace lapidary
