// devices.cc: opening, describing and releasing devices and streams.
#include <pthread.h>

#include "bridge/arguments.h"
#include "bridge/environment.h"

namespace lapidary {
namespace {

Napi::Object to_object(Napi::Env env, const IsaInfo& isa) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", isa.name);
  object.Set("compiled", isa.compiled);
  object.Set("supported", isa.supported);
  object.Set("active", isa.active);
  if (!isa.reason.empty()) object.Set("reason", isa.reason);
  return object;
}

Napi::Array to_array(Napi::Env env, const std::vector<IsaInfo>& isas) {
  Napi::Array array = Napi::Array::New(env, isas.size());
  for (size_t i = 0; i < isas.size(); ++i) array.Set(uint32_t(i), to_object(env, isas[i]));
  return array;
}

struct OpenCompletion final : PromiseCompletion {
  // The thread that opened the device posts this as its last act.
  void arrive(napi_env env) override {
    std::vector<pthread_t>& threads = Environment::of(env).threads;
    std::erase_if(threads, [this](pthread_t other) { return pthread_equal(other, thread); });
    pthread_join(thread, nullptr);
  }
  napi_value value(napi_env env) override {
    double handle = 0;
    const Status status = Environment::of(env).devices.add(std::move(device), "devices", handle);
    if (status.ok()) return Napi::Number::New(env, handle);
    code = status.code();
    message = status.message();
    return nullptr;
  }
  std::shared_ptr<Device> device;
  pthread_t thread = {};
};

struct OpenJob {
  DeviceOptions options;
  std::unique_ptr<OpenCompletion> completion;
  std::shared_ptr<CompletionQueue> completions;
};

// openDevice(kind, threads, isa, guard, unverified) → Promise<handle>. On a thread of its own: self-tests take tens of milliseconds.
Napi::Value open_device(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  auto job = std::make_unique<OpenJob>();
  job->options.kind = string_argument(info, 0);
  const double threads = number_argument(info, 1);
  job->options.threads = threads >= -1e9 && threads <= 1e9 ? int(threads) : -1;
  job->options.isa = string_argument(info, 2);
  job->options.guard = boolean_argument(info, 3);
  job->options.unverified = boolean_argument(info, 4);
  job->completion = std::make_unique<OpenCompletion>();
  job->completions = environment.completions;
  const auto entry = [](void* argument) -> void* {
    std::unique_ptr<OpenJob> job(static_cast<OpenJob*>(argument));
    const Status status = open_device(job->options, job->completion->device);
    job->completion->code = status.code();
    job->completion->message = status.message();
    job->completions->post(std::move(job->completion));
    return nullptr;
  };
  OpenCompletion& completion = *job->completion;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, entry, job.get()) != 0) {
    throw_if_error(info.Env(), error(Code::kOutOfMemory, "Device.open: the system has no more threads"));
    return {};
  }
  // The new thread may already have posted: the completion stays whole until the JS thread, which is here, takes it.
  completion.thread = thread;
  napi_value promise = environment.completions->expect(info.Env(), completion);
  (void)job.release();
  environment.threads.push_back(thread);
  return Napi::Value(info.Env(), promise);
}

// listIsas() → [{ name, compiled, supported, active, reason? }]
Napi::Value list_isas_callback(const Napi::CallbackInfo& info) { return to_array(info.Env(), list_isas()); }

// listGpus() → [{ kind, name, driver, computeCapability, memory, reason? }]
Napi::Value list_gpus_callback(const Napi::CallbackInfo& info) {
  Napi::Array array = Napi::Array::New(info.Env());
  for (const GpuListing& gpu : list_gpus()) {
    Napi::Object object = Napi::Object::New(info.Env());
    object.Set("kind", gpu.kind);
    object.Set("name", gpu.name);
    object.Set("driver", gpu.driver);
    object.Set("computeCapability", gpu.compute_capability);
    object.Set("memory", double(gpu.memory));
    if (!gpu.reason.empty()) object.Set("reason", gpu.reason);
    array.Set(array.Length(), object);
  }
  return array;
}

Napi::Value device_info(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Status status;
  auto* device = Environment::of(env).devices.find(number_argument(info, 0), "device.info", status);
  if (throw_if_error(env, status)) return {};
  const DeviceInfo details = (*device)->info();
  Napi::Object object = Napi::Object::New(env);
  object.Set("kind", details.kind);
  object.Set("name", details.name);
  object.Set("isa", details.isa);
  object.Set("isas", to_array(env, details.isas));
  object.Set("threads", details.threads);
  object.Set("memoryLimit", double(details.memory_limit));
  Napi::Object kernels = Napi::Object::New(env);
  for (const auto& [op, isa] : details.kernels) kernels.Set(op, isa);
  object.Set("kernels", kernels);
  Napi::Object notes = Napi::Object::New(env);
  for (const auto& [name, text] : details.notes) notes.Set(name, text);
  object.Set("notes", notes);
  return object;
}

Napi::Value device_memory(const Napi::CallbackInfo& info) {
  Status status;
  auto* device = Environment::of(info.Env()).devices.find(number_argument(info, 0), "device.memory", status);
  if (throw_if_error(info.Env(), status)) return {};
  const MemoryStats stats = (*device)->memory();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("bytes", double(stats.bytes));
  object.Set("buffers", double(stats.buffers));
  object.Set("cached", double(stats.cached));
  return object;
}

// releaseDevice(handle): its tensors stay valid memory, its streams are closed and their handles dead.
void release_device(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  std::shared_ptr<Device> device;
  if (!environment.devices.remove(number_argument(info, 0), device)) return;
  environment.streams.remove_if([&](std::shared_ptr<Stream>& stream) {
    if (stream->shared_device() != device) return false;
    stream->close();
    return true;
  });
}

// createStream(device) → handle
Napi::Value create_stream(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* device = environment.devices.find(number_argument(info, 0), "createStream", status);
  std::shared_ptr<Stream> stream;
  if (device) status = Stream::create(*device, environment.completions, stream);
  if (throw_if_error(info.Env(), status)) return {};
  double handle = 0;
  if (throw_if_error(info.Env(), environment.streams.add(std::move(stream), "streams", handle))) return {};
  return Napi::Number::New(info.Env(), handle);
}

void release_stream(const Napi::CallbackInfo& info) {
  std::shared_ptr<Stream> stream;
  if (Environment::of(info.Env()).streams.remove(number_argument(info, 0), stream)) stream->close();
}

struct SynchronizeCompletion final : PromiseCompletion {
  napi_value value(napi_env env) override { return Napi::Env(env).Undefined(); }
};

// synchronize(stream) → Promise<void>
Napi::Value synchronize(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "synchronize", status);
  if (throw_if_error(info.Env(), status)) return {};
  auto completion = std::make_unique<SynchronizeCompletion>();
  napi_value promise = environment.completions->expect(info.Env(), *completion);
  (*stream)->push_synchronize(std::move(completion));
  return Napi::Value(info.Env(), promise);
}

// waitStream(stream, other)
void wait_stream(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  Status status;
  auto* stream = environment.streams.find(number_argument(info, 0), "stream.wait", status);
  auto* other = stream ? environment.streams.find(number_argument(info, 1), "stream.wait: other", status) : nullptr;
  if (throw_if_error(info.Env(), status)) return;
  (*stream)->push_wait(**other);
}

}  // namespace

void export_devices(Napi::Env env, Napi::Object exports) {
  exports.Set("openDevice", Napi::Function::New<open_device>(env));
  exports.Set("listIsas", Napi::Function::New<list_isas_callback>(env));
  exports.Set("listGpus", Napi::Function::New<list_gpus_callback>(env));
  exports.Set("deviceInfo", Napi::Function::New<device_info>(env));
  exports.Set("deviceMemory", Napi::Function::New<device_memory>(env));
  exports.Set("releaseDevice", Napi::Function::New<release_device>(env));
  exports.Set("createStream", Napi::Function::New<create_stream>(env));
  exports.Set("releaseStream", Napi::Function::New<release_stream>(env));
  exports.Set("synchronize", Napi::Function::New<synchronize>(env));
  exports.Set("waitStream", Napi::Function::New<wait_stream>(env));
}

}  // namespace lapidary
