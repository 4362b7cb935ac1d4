// environment.h: everything one JavaScript environment (the main thread, or a worker) owns natively.
#pragma once
#include <napi.h>
#include <pthread.h>

#include <memory>
#include <vector>

#include "bridge/completion_queue.h"
#include "bridge/handle_table.h"
#include "runtime/program.h"

namespace lapidary {

struct TensorEntry {
  TensorView view;
  BufferRef buffer;
  std::shared_ptr<Device> device;
  bool owns_memory = false;  // reported to V8: a view does not count again
};

// Doubles shared with lib/op.ts: one crossing carries a whole call and its outputs. See enqueue.cc for the layout.
static constexpr int kCommandDoubles = 128;

class Environment {
 public:
  explicit Environment(Napi::Env env);
  ~Environment();
  static Environment& of(napi_env env);

  Napi::Env env;
  HandleTable<TensorEntry, HandleType::tensor> tensors;
  HandleTable<std::shared_ptr<Stream>, HandleType::stream> streams;
  HandleTable<std::shared_ptr<Device>, HandleType::device> devices;
  HandleTable<std::shared_ptr<Program>, HandleType::program> programs;
  std::unique_ptr<Recorder> recorder;  // while a program is captured
  std::shared_ptr<CompletionQueue> completions;
  Napi::FunctionReference error_class;  // LapidaryError, registered by lib/errors.ts
  Napi::Reference<Napi::Float64Array> command_reference;
  double* command = nullptr;
  std::vector<pthread_t> threads;  // that open devices; joined at the end

  // Native bytes that came (or went, negative) through tensors of this environment; told to V8 in large steps.
  void account(int64_t bytes);

  // A tensor over fresh memory: placeholder memory while a program of this device is captured.
  Status allocate(const std::shared_ptr<Device>& device, int64_t bytes, BufferRef& out) const;
  Status add_tensor(TensorView view, BufferRef buffer, std::shared_ptr<Device> device, bool owns_memory,
                    double& handle);
  void remove_tensor(double handle);  // nothing where it is not live

  // The entry of a tensor handle that may be used now: live, and not a placeholder of a finished capture.
  TensorEntry* find_tensor(double handle, const char* what, Status& status);

 private:
  int64_t unreported_ = 0;
};

// A copy of `count` bytes as JavaScript sees it; null where it has no memory.
napi_value to_array_buffer(napi_env env, const void* bytes, size_t count);

// Throws the environment's LapidaryError for a failed status; true if it failed.
bool throw_if_error(napi_env env, const Status& status);

// The verbs of the bridge, one group per file.
void export_devices(Napi::Env env, Napi::Object exports);
void export_tensors(Napi::Env env, Napi::Object exports);
void export_calls(Napi::Env env, Napi::Object exports);
void export_programs(Napi::Env env, Napi::Object exports);
void export_tables(Napi::Env env, Napi::Object exports);

}  // namespace lapidary
