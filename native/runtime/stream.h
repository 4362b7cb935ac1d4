// stream.h: an in-order queue of work for one device, and the thread that executes it.
//
// Errors are sticky: after the first failure the stream skips work until synchronize() has reported it; reads in
// between fail with the same error, because what they would read was never computed.
#pragma once
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backends/device.h"

namespace lapidary {

// The answer to something a caller waits for. The bridge derives from it what it needs to settle a promise.
struct Completion {
  virtual ~Completion() = default;
  Code code = Code::kOk;
  std::string message;
  std::unique_ptr<unsigned char[]> bytes;  // what was read, one tensor after the other
  size_t byte_count = 0;
  std::vector<size_t> part_bytes;  // of each tensor
};

// A tensor together with the buffer that its view points into.
struct BoundTensor {
  TensorView view;
  BufferRef buffer;
};

// Where completions go: one per JS environment. Any thread. After close() they are dropped.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  virtual void post(std::unique_ptr<Completion> completion) = 0;
};

class Stream;

// A unit of queued work. Either run() is called, on the stream's thread, or cancel(), where the stream is closed first.
struct WorkItem {
  virtual ~WorkItem() = default;
  virtual void run(Stream& stream) = 0;
  virtual void cancel(Stream&) {}
  // Non-null for an op call: consecutive ones are executed together.
  virtual struct OwnedCall* owned_call() { return nullptr; }
};

// One call with shared ownership of all memory it touches.
struct OwnedCall final : WorkItem {
  void run(Stream& stream) override;
  OwnedCall* owned_call() override { return this; }
  // As new, for the next use.
  void clear();

  Call call;
  Step step;
  BufferRef buffers[kMaxInputs + kMaxOutputs];  // inputs, then outputs
};

class Stream {
 public:
  static Status create(std::shared_ptr<Device> device, std::shared_ptr<CompletionSink> sink,
                       std::shared_ptr<Stream>& out);
  ~Stream();

  Device& device() { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }

  // An empty call to fill and push. They are recycled: a call is 2 KB, and memory that one thread allocates and another
  // frees makes both wait for the allocator. Null where there is no memory.
  std::unique_ptr<OwnedCall> take_call();
  // Overwrites the view's memory (contiguous) in order with the calls around it. `bytes` is copied before return.
  Status push_write(const TensorView& view, BufferRef buffer, const void* bytes, size_t count);
  // Completes with the tensors' bytes, rows packed.
  void push_read(std::vector<BoundTensor> tensors, std::unique_ptr<Completion> completion);
  void push_synchronize(std::unique_ptr<Completion> completion);
  // Everything pushed to this stream from now on waits for everything pushed to `other` until now.
  void push_wait(Stream& other);
  void push(std::unique_ptr<WorkItem> item);

  // Finishes the item in progress, drops the rest, joins the thread. Idempotent.
  void close();
  bool closed() const { return closing_.load(std::memory_order_relaxed); }

  // ── for work items, on the stream's thread ──
  bool failed() const { return sticky_.code != Code::kOk; }
  void fail(Code code, std::string message);
  void clear_failure() { sticky_ = {}; }
  void complete(std::unique_ptr<Completion> completion);  // with the sticky error, if any
  void complete_disposed(std::unique_ptr<Completion> completion);
  // Executes, turning a failure into the sticky error.
  void execute(const Step* steps, size_t count);
  void replay(Replay& replay, const std::vector<unsigned char*>& bindings, const Step* steps, size_t count);

 private:
  Stream(std::shared_ptr<Device> device, std::shared_ptr<CompletionSink> sink);
  void fail(const Step* steps, const ExecutionError& failure);
  void run();
  void process(std::vector<std::unique_ptr<WorkItem>>& items);
  void recycle(std::vector<std::unique_ptr<WorkItem>>& items, size_t begin, size_t end);

  std::shared_ptr<Device> device_;
  std::shared_ptr<CompletionSink> sink_;
  ExecutionError sticky_;
  std::vector<Step> steps_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::unique_ptr<WorkItem>> queue_;
  std::vector<std::unique_ptr<OwnedCall>> spare_;
  std::atomic<uint64_t> pushed_{0};
  std::atomic<bool> closing_{false};
  bool sleeping_ = false;
  pthread_t thread_ = {};
  bool started_ = false;
};

}  // namespace lapidary
