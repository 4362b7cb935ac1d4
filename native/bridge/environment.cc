#include "bridge/environment.h"

#include <cstdlib>
#include <cstring>

namespace lapidary {
namespace {

// Below this much change V8 is not told: a call costs about as much as an enqueue.
constexpr int64_t kReportStep = int64_t(4) << 20;

napi_value make_error_object(napi_env env, Code code, const std::string& message) {
  const Napi::FunctionReference& constructor = Environment::of(env).error_class;
  const Napi::String name = Napi::String::New(env, code_name(code));
  const Napi::String text = Napi::String::New(env, message);
  if (!constructor.IsEmpty()) return constructor.New({name, text});
  Napi::Error plain = Napi::Error::New(env, message);
  plain.Set("code", name);
  return plain.Value();
}

}  // namespace

Environment::Environment(Napi::Env environment) : env(environment), completions(std::make_shared<CompletionQueue>()) {
  Napi::Float64Array array = Napi::Float64Array::New(env, kCommandDoubles);
  command = array.Data();
  command_reference = Napi::Persistent(array);
}

// Runs as the environment's clean-up hook: at worker.terminate(), process.exit() and normal exit alike. Streams finish
// what they are executing and drop the rest.
Environment::~Environment() {
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  streams.for_each([](std::shared_ptr<Stream>& stream) { stream->close(); });
  completions->close();
}

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Environment*>(data);
}

void Environment::account(int64_t bytes) {
  unreported_ += bytes;
  if (std::llabs(unreported_) < kReportStep) return;
  int64_t total;
  napi_adjust_external_memory(env, unreported_, &total);
  unreported_ = 0;
}

Status Environment::allocate(const std::shared_ptr<Device>& device, int64_t bytes, BufferRef& out) const {
  if (recorder && recorder->stream()->shared_device() == device) {
    out = recorder->plan_buffer(bytes);
    return {};
  }
  return device->allocate(bytes, out);
}

Status Environment::add_tensor(TensorView view, BufferRef buffer, std::shared_ptr<Device> device, bool owns_memory,
                               double& handle) {
  const int64_t bytes = owns_memory ? buffer->bytes() : 0;
  LAPIDARY_RETURN_IF_ERROR(
      tensors.add({view, std::move(buffer), std::move(device), owns_memory}, "tensors of this environment", handle));
  if (bytes) account(bytes);
  return {};
}

void Environment::remove_tensor(double handle) {
  TensorEntry entry;
  if (tensors.remove(handle, entry) && entry.owns_memory) account(-entry.buffer->bytes());
}

TensorEntry* Environment::find_tensor(double handle, const char* what, Status& status) {
  TensorEntry* entry = tensors.find(handle, what, status);
  if (!entry || !entry->buffer->planned()) return entry;
  if (recorder && static_cast<PlannedBuffer*>(entry->buffer.get())->recorder() == recorder.get()) return entry;
  status = error(Code::kCapture, "%s: this tensor exists only inside the program that was captured with it", what);
  return nullptr;
}

napi_value to_array_buffer(napi_env env, const void* bytes, size_t count) {
  void* data = nullptr;
  napi_value buffer = nullptr;
  if (napi_create_arraybuffer(env, count, &data, &buffer) != napi_ok) return nullptr;
  if (count) memcpy(data, bytes, count);
  return buffer;
}

bool throw_if_error(napi_env env, const Status& status) {
  if (status.ok()) return false;
  napi_throw(env, make_error_object(env, status.code(), status.message()));
  return true;
}

}  // namespace lapidary

namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  using namespace lapidary;
  auto* environment = new Environment(env);
  napi_set_instance_data(env, environment, nullptr, nullptr);
  const Status status = environment->completions->open(env, &make_error_object);
  // Hooks run last in, first out: the streams must stop before Node closes the completion queue's thread-safe function.
  napi_add_env_cleanup_hook(
      env, [](void* data) { delete static_cast<Environment*>(data); }, environment);
  if (throw_if_error(env, status)) return exports;
  export_devices(env, exports);
  export_tensors(env, exports);
  export_calls(env, exports);
  export_programs(env, exports);
  export_tables(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(lapidary, initialize)
