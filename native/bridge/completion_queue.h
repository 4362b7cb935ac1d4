// completion_queue.h: the one way back from native threads to JavaScript.
//
// Completions travel over one thread-safe function per environment and settle promises on the JS thread. It keeps the
// process alive only while something is awaited.
#pragma once
#include <napi.h>

#include <atomic>
#include <mutex>

#include "runtime/stream.h"

namespace lapidary {

// A completion that settles a promise.
struct PromiseCompletion : Completion {
  napi_deferred deferred = nullptr;
  // The value to resolve with; JS thread, inside a handle scope. Null rejects: with `code` where it sets one.
  virtual napi_value value(napi_env env) = 0;
  // Runs first on the JS thread, also where the completion is an error.
  virtual void arrive(napi_env) {}
};

class CompletionQueue final : public CompletionSink, public std::enable_shared_from_this<CompletionQueue> {
 public:
  // `make_error` builds the environment's error object.
  using MakeError = napi_value (*)(napi_env env, Code code, const std::string& message);
  Status open(napi_env env, MakeError make_error);
  // Creates a promise for the completion and counts it as awaited.
  napi_value expect(napi_env env, PromiseCompletion& completion);
  void post(std::unique_ptr<Completion> completion) override;
  void close();

 private:
  static void call_js(napi_env env, napi_value, void* context, void* data);

  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;
  MakeError make_error_ = nullptr;
  int awaited_ = 0;
};

}  // namespace lapidary
