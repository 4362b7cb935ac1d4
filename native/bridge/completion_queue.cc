#include "bridge/completion_queue.h"

namespace lapidary {

Status CompletionQueue::open(napi_env env, MakeError make_error) {
  make_error_ = make_error;
  napi_value name;
  napi_create_string_utf8(env, "lapidary", NAPI_AUTO_LENGTH, &name);
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, &call_js,
                                      &function_) != napi_ok) {
    return error(Code::kInternal, "cannot create the completion queue");
  }
  napi_unref_threadsafe_function(env, function_);
  return {};
}

napi_value CompletionQueue::expect(napi_env env, PromiseCompletion& completion) {
  napi_value promise;
  if (napi_create_promise(env, &completion.deferred, &promise) != napi_ok) return nullptr;
  if (awaited_++ == 0 && function_) napi_ref_threadsafe_function(env, function_);
  return promise;
}

void CompletionQueue::post(std::unique_ptr<Completion> completion) {
  std::lock_guard lock(mutex_);
  if (!function_) return;
  if (napi_call_threadsafe_function(function_, completion.get(), napi_tsfn_nonblocking) == napi_ok) {
    (void)completion.release();  // call_js owns it now
  }
}

void CompletionQueue::close() {
  std::lock_guard lock(mutex_);
  if (function_) napi_release_threadsafe_function(function_, napi_tsfn_abort);
  function_ = nullptr;
}

void CompletionQueue::call_js(napi_env env, napi_value, void* context, void* data) {
  std::unique_ptr<PromiseCompletion> completion(static_cast<PromiseCompletion*>(static_cast<Completion*>(data)));
  if (!env) return;  // the environment is going away
  auto* self = static_cast<CompletionQueue*>(context);
  if (--self->awaited_ == 0 && self->function_) napi_unref_threadsafe_function(env, self->function_);
  completion->arrive(env);
  napi_value value = completion->code == Code::kOk ? completion->value(env) : nullptr;
  if (value) {
    napi_resolve_deferred(env, completion->deferred, value);
    return;
  }
  if (completion->code == Code::kOk) {
    completion->code = Code::kOutOfMemory;
    completion->message = "JavaScript has no memory for the result";
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    if (pending) napi_get_and_clear_last_exception(env, &value);
  }
  napi_reject_deferred(env, completion->deferred, self->make_error_(env, completion->code, completion->message));
}

}  // namespace lapidary
