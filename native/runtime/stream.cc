#include "runtime/stream.h"

#include <sched.h>

#include <chrono>
#include <cstring>
#include <new>

#include "core/system.h"

namespace lapidary {
namespace {

// As in pool.cc: waking a sleeping thread costs more than a small op.
constexpr auto kSpinBeforeSleep = std::chrono::microseconds(50);

constexpr size_t kSpareCalls = 512;

struct WriteItem final : WorkItem {
  void run(Stream& stream) override {
    if (!stream.failed()) stream.device().copy_in(view.data, bytes.get(), count);
  }
  TensorView view;
  BufferRef buffer;
  std::unique_ptr<unsigned char[]> bytes;
  size_t count = 0;
};

// Copies the elements of a strided view to a packed array, runs of contiguous elements at a time.
void gather(Device& device, const TensorView& view, unsigned char* out) {
  if (view.layout == Layout::panels || is_contiguous(view)) {
    device.copy_out(out, view.data, size_t(storage_bytes(view)));
    return;
  }
  const int64_t element = info(view.dtype).block_bytes;
  const int last = view.rank - 1;
  const bool runs = view.strides[last] == 1;
  const int64_t run = runs ? view.dims[last] : 1;
  const int64_t total = element_count(view) / (run ? run : 1);
  int64_t index[kMaxRank] = {};
  for (int64_t i = 0; i < total; ++i) {
    int64_t offset = 0;
    for (int axis = 0; axis < view.rank; ++axis) offset += index[axis] * view.strides[axis];
    device.copy_out(out, view.data + offset * element, size_t(run * element));
    out += run * element;
    for (int axis = runs ? last - 1 : last; axis >= 0; --axis) {
      if (++index[axis] < view.dims[axis]) break;
      index[axis] = 0;
    }
  }
}

struct ReadItem final : WorkItem {
  void run(Stream& stream) override {
    for (const BoundTensor& tensor : tensors) {
      if (!stream.failed() && !tensor.buffer->readable())
        stream.fail(Code::kFile, "read: the mapped file has become shorter");
    }
    if (!stream.failed()) read(stream);
    tensors.clear();  // before the caller hears of it: guard regions are then checked in time
    stream.complete(std::move(completion));
  }
  void read(Stream& stream) {
    size_t count = 0;
    for (const BoundTensor& tensor : tensors) {
      completion->part_bytes.push_back(size_t(storage_bytes(tensor.view)));
      count += completion->part_bytes.back();
    }
    completion->bytes.reset(new (std::nothrow) unsigned char[count ? count : 1]);
    if (!completion->bytes) {
      completion->code = Code::kOutOfMemory;
      completion->message = "read: no memory for " + std::to_string(count) + " bytes";
      return;
    }
    completion->byte_count = count;
    unsigned char* to = completion->bytes.get();
    for (size_t i = 0; i < tensors.size(); ++i) {
      gather(stream.device(), tensors[i].view, to);
      to += completion->part_bytes[i];
    }
  }
  void cancel(Stream& stream) override { stream.complete_disposed(std::move(completion)); }
  std::vector<BoundTensor> tensors;
  std::unique_ptr<Completion> completion;
};

struct SynchronizeItem final : WorkItem {
  void cancel(Stream& stream) override { stream.complete_disposed(std::move(completion)); }
  void run(Stream& stream) override {
    stream.complete(std::move(completion));
    stream.clear_failure();
  }
  std::unique_ptr<Completion> completion;
};

// Set once, when the other stream reaches it or will never reach it.
struct Event {
  void set() {
    std::lock_guard lock(mutex);
    done = true;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return done; });
  }
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
};

struct SignalItem final : WorkItem {
  ~SignalItem() override { event->set(); }
  void run(Stream&) override {}
  std::shared_ptr<Event> event;
};

struct WaitItem final : WorkItem {
  void run(Stream&) override { event->wait(); }
  std::shared_ptr<Event> event;
};

}  // namespace

void OwnedCall::run(Stream& stream) { stream.execute(&step, 1); }

void OwnedCall::clear() {
  for (int i = 0; i < call.inputs; ++i) {
    call.in[i] = TensorView();
    buffers[i].reset();
  }
  for (int i = 0; i < call.outputs; ++i) {
    call.out[i] = TensorView();
    buffers[kMaxInputs + i].reset();
  }
  call.inputs = call.outputs = 0;
  memset(call.params, 0, sizeof call.params);
}

Status Stream::create(std::shared_ptr<Device> device, std::shared_ptr<CompletionSink> sink,
                      std::shared_ptr<Stream>& out) {
  std::shared_ptr<Stream> stream(new Stream(std::move(device), std::move(sink)));
  const auto entry = [](void* self) -> void* {
    static_cast<Stream*>(self)->run();
    return nullptr;
  };
  if (pthread_create(&stream->thread_, nullptr, entry, stream.get()) != 0) {
    return error(Code::kOutOfMemory, "stream: the system has no more threads");
  }
  stream->started_ = true;
  out = std::move(stream);
  return {};
}

Stream::Stream(std::shared_ptr<Device> device, std::shared_ptr<CompletionSink> sink)
    : device_(std::move(device)), sink_(std::move(sink)) {}

Stream::~Stream() { close(); }

void Stream::push(std::unique_ptr<WorkItem> item) {
  bool wake;
  {
    std::lock_guard lock(mutex_);
    wake = sleeping_;
    if (!closing_.load(std::memory_order_relaxed)) {
      queue_.push_back(std::move(item));
      pushed_.fetch_add(1, std::memory_order_release);
    }
  }
  if (item) item->cancel(*this);
  if (wake) wake_.notify_one();
}

std::unique_ptr<OwnedCall> Stream::take_call() {
  {
    std::lock_guard lock(mutex_);
    if (!spare_.empty()) {
      std::unique_ptr<OwnedCall> call = std::move(spare_.back());
      spare_.pop_back();
      return call;
    }
  }
  return std::unique_ptr<OwnedCall>(new (std::nothrow) OwnedCall());
}

// Lets go of executed items; calls are kept for take_call().
void Stream::recycle(std::vector<std::unique_ptr<WorkItem>>& items, size_t begin, size_t end) {
  for (size_t i = begin; i < end; ++i) {
    if (OwnedCall* call = items[i]->owned_call()) {
      call->clear();
    } else {
      items[i].reset();
    }
  }
  std::lock_guard lock(mutex_);
  for (size_t i = begin; i < end && spare_.size() < kSpareCalls; ++i) {
    if (items[i]) spare_.emplace_back(static_cast<OwnedCall*>(items[i].release()));
  }
}

Status Stream::push_write(const TensorView& view, BufferRef buffer, const void* bytes, size_t count) {
  auto item = std::make_unique<WriteItem>();
  item->view = view;
  item->buffer = std::move(buffer);
  item->bytes.reset(new (std::nothrow) unsigned char[count ? count : 1]);
  if (!item->bytes) return error(Code::kOutOfMemory, "write: no memory for a copy of %zu bytes", count);
  item->count = count;
  if (count) memcpy(item->bytes.get(), bytes, count);
  push(std::move(item));
  return {};
}

void Stream::push_read(std::vector<BoundTensor> tensors, std::unique_ptr<Completion> completion) {
  auto item = std::make_unique<ReadItem>();
  item->tensors = std::move(tensors);
  item->completion = std::move(completion);
  push(std::move(item));
}

void Stream::push_synchronize(std::unique_ptr<Completion> completion) {
  auto item = std::make_unique<SynchronizeItem>();
  item->completion = std::move(completion);
  push(std::move(item));
}

void Stream::push_wait(Stream& other) {
  if (&other == this) return;
  auto event = std::make_shared<Event>();
  auto signal = std::make_unique<SignalItem>();
  signal->event = event;
  auto wait = std::make_unique<WaitItem>();
  wait->event = event;
  other.push(std::move(signal));
  push(std::move(wait));
}

void Stream::close() {
  {
    std::lock_guard lock(mutex_);
    if (!started_) return;
    started_ = false;
    closing_.store(true);
  }
  wake_.notify_one();
  pthread_join(thread_, nullptr);
  for (auto& item : queue_) item->cancel(*this);
  queue_.clear();
}

void Stream::fail(Code code, std::string message) {
  if (!failed()) sticky_ = {code, 0, std::move(message)};
}

void Stream::complete(std::unique_ptr<Completion> completion) {
  if (std::string defect = device_->take_defect(); !defect.empty()) fail(Code::kInternal, defect);
  if (failed()) {
    completion->code = sticky_.code;
    completion->message = sticky_.message;
  }
  sink_->post(std::move(completion));
}

void Stream::complete_disposed(std::unique_ptr<Completion> completion) {
  completion->code = Code::kDisposed;
  completion->message = "the stream was disposed before this was done";
  sink_->post(std::move(completion));
}

void Stream::execute(const Step* steps, size_t count) {
  if (failed() || count == 0) return;
  ExecutionError failure;
  if (!device_->execute(steps, count, closing_, failure)) fail(steps, failure);
}

void Stream::replay(Replay& replay, const std::vector<unsigned char*>& bindings, const Step* steps, size_t count) {
  if (failed() || count == 0) return;
  ExecutionError failure;
  if (!device_->replay(replay, bindings, steps, count, closing_, failure)) fail(steps, failure);
}

void Stream::fail(const Step* steps, const ExecutionError& failure) {
  const char* op = contract(steps[failure.step].call->op).name;
  fail(failure.code, std::string(op) + ": " + failure.message);
}

void Stream::run() {
  device_->start_thread();
  ignore_file_size_signal();
  std::vector<std::unique_ptr<WorkItem>> items;
  uint64_t taken = 0;
  while (!closing_.load(std::memory_order_acquire)) {
    const auto start = std::chrono::steady_clock::now();
    while (pushed_.load(std::memory_order_acquire) == taken && !closing_.load(std::memory_order_relaxed) &&
           std::chrono::steady_clock::now() - start < kSpinBeforeSleep) {
      sched_yield();
    }
    {
      std::unique_lock lock(mutex_);
      sleeping_ = true;
      wake_.wait(lock, [this] { return !queue_.empty() || closing_.load(); });
      sleeping_ = false;
      items.swap(queue_);
    }
    taken += items.size();
    process(items);
    for (auto& item : items) {
      if (item) item->cancel(*this);  // closed in between
    }
    items.clear();
  }
}

void Stream::process(std::vector<std::unique_ptr<WorkItem>>& items) {
  for (size_t i = 0; i < items.size() && !closing_.load(std::memory_order_acquire);) {
    steps_.clear();
    size_t end = i;
    for (; end < items.size(); ++end) {
      OwnedCall* owned = items[end]->owned_call();
      if (!owned) break;
      for (int input = 0; input < owned->call.inputs; ++input) {
        const BufferRef& buffer = owned->buffers[input];
        if (buffer && !buffer->readable()) {
          execute(steps_.data(), steps_.size());
          steps_.clear();
          fail(Code::kFile,
               std::string(contract(owned->call.op).name) + ": the mapped file of an input has become shorter");
        }
      }
      steps_.push_back(owned->step);
    }
    execute(steps_.data(), steps_.size());
    // Before a read or synchronize after them answers: whoever awaited it finds their memory returned.
    recycle(items, i, end);
    i = end;
    if (end == items.size()) continue;
    items[end]->run(*this);
    items[end].reset();
    i = end + 1;
  }
}

}  // namespace lapidary
