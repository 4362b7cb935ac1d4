// stream_stress.cc: streams, programs and the pool under contention. Made for ThreadSanitizer (npm run test:tsan);
// without it the results alone are checked.
//
// Every round opens a device, lets several client threads each drive streams of their own on it (eager calls, replays
// of a shared program, waits between streams, failing calls, reads), and closes everything while work is still queued.
// The arithmetic is exact in f32: a chain of n additions of 1 gives n.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>

#include "runtime/file_transfer.h"
#include "runtime/program.h"

namespace lapidary {
namespace {

constexpr int kClients = 4;
constexpr int kRounds = 6;
constexpr int kChain = 40;
constexpr int64_t kElements = 4096;

std::atomic<int> failures{0};
std::atomic<int> checks{0};

void expect(bool holds, const char* what) {
  checks.fetch_add(1);
  if (holds) return;
  failures.fetch_add(1);
  printf("FAILED: %s\n", what);
}

// Takes the place of the bridge: counts what comes back, and lets one thread wait for one answer.
class Sink final : public CompletionSink {
 public:
  struct Answer final : Completion {
    Sink* sink = nullptr;
    bool* done = nullptr;
    Code* result = nullptr;
    std::vector<float>* values = nullptr;
  };

  std::unique_ptr<Answer> expect_answer(bool* done, Code* result, std::vector<float>* values) {
    auto answer = std::make_unique<Answer>();
    answer->sink = this;
    answer->done = done;
    answer->result = result;
    answer->values = values;
    return answer;
  }

  void post(std::unique_ptr<Completion> completion) override {
    auto& answer = static_cast<Answer&>(*completion);
    std::lock_guard lock(mutex_);
    *answer.result = answer.code;
    if (answer.values && answer.code == Code::kOk) {
      answer.values->resize(answer.byte_count / sizeof(float));
      memcpy(answer.values->data(), answer.bytes.get(), answer.byte_count);
    }
    *answer.done = true;
    changed_.notify_all();
  }

  void wait(const bool& done) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

BoundTensor make_tensor(Device& device, DType dtype, std::initializer_list<int64_t> dims) {
  BoundTensor tensor;
  tensor.view.dtype = dtype;
  for (int64_t dim : dims) tensor.view.dims[tensor.view.rank++] = dim;
  int64_t stride = 1;
  for (int axis = tensor.view.rank - 1; axis >= 0; --axis) {
    tensor.view.strides[axis] = stride;
    stride *= tensor.view.dims[axis];
  }
  const Status status = device.allocate(storage_bytes(tensor.view), tensor.buffer);
  expect(status.ok(), "allocate");
  tensor.view.data = tensor.buffer->data();
  return tensor;
}

BoundTensor filled(Device& device, float value) {
  BoundTensor tensor = make_tensor(device, DType::f32, {kElements});
  for (int64_t i = 0; i < kElements; ++i) tensor.view.as<float>()[i] = value;
  return tensor;
}

// Plans one call the way the bridge does; its outputs' memory comes from `recorder` while one is given.
std::unique_ptr<OwnedCall> plan(Stream& stream, Recorder* recorder, OpId op, std::initializer_list<BoundTensor> inputs,
                                BoundTensor& output) {
  Device& device = stream.device();
  auto owned = recorder ? std::make_unique<OwnedCall>() : stream.take_call();
  const Contract& contract_of_op = contract(op);
  owned->call.op = op;
  owned->call.inputs = uint8_t(contract_of_op.input_count);
  int i = 0;
  for (const BoundTensor& input : inputs) {
    owned->call.in[i] = input.view;
    owned->buffers[i++] = input.buffer;
  }
  double attributes[24];
  for (int a = 0; a < contract_of_op.attribute_count; ++a) attributes[a] = contract_of_op.attributes[a].initial;
  PlanContext context{owned->call, attributes, device.traits()};
  const Status planned = contract_of_op.plan(context);
  if (!planned.ok()) printf("%s\n", planned.message().c_str());
  expect(planned.ok(), "plan");
  expect(device.resolve(owned->call, owned->step).ok(), "resolve");
  TensorView& view = owned->call.out[0];
  BufferRef& buffer = owned->buffers[kMaxInputs];
  if (recorder) {
    buffer = recorder->plan_buffer(storage_bytes(view));
  } else {
    expect(device.allocate(storage_bytes(view), buffer).ok(), "allocate output");
  }
  view.data = buffer->data();
  output = {view, buffer};
  return owned;
}

BoundTensor add(Stream& stream, const BoundTensor& a, const BoundTensor& b) {
  BoundTensor sum;
  stream.push(plan(stream, nullptr, OpId::add, {a, b}, sum));
  return sum;
}

// A lookup of a row that the table does not have: an error that only the kernel can find.
void push_failing_call(Stream& stream) {
  BoundTensor table = make_tensor(stream.device(), DType::f32, {4, 16});
  memset(table.view.data, 0, size_t(storage_bytes(table.view)));
  BoundTensor tokens = make_tensor(stream.device(), DType::i32, {3});
  const int32_t ids[3] = {0, 99, 1};
  memcpy(tokens.view.data, ids, sizeof ids);
  BoundTensor rows;
  stream.push(plan(stream, nullptr, OpId::embedding, {tokens, table}, rows));
}

Code read(Stream& stream, Sink& sink, const BoundTensor& tensor, std::vector<float>& values) {
  bool done = false;
  Code code = Code::kOk;
  stream.push_read({tensor}, sink.expect_answer(&done, &code, &values));
  sink.wait(done);
  return code;
}

Code synchronize(Stream& stream, Sink& sink) {
  bool done = false;
  Code code = Code::kOk;
  stream.push_synchronize(sink.expect_answer(&done, &code, nullptr));
  sink.wait(done);
  return code;
}

bool all_equal(const std::vector<float>& values, float expected) {
  for (float value : values) {
    if (!(value == expected)) return false;
  }
  return values.size() == size_t(kElements);
}

// out = x + n·1 in n calls.
std::shared_ptr<Program> capture_chain(const std::shared_ptr<Stream>& stream, const BoundTensor& one, int calls,
                                       const Program* arena = nullptr) {
  Recorder recorder(stream);
  BoundTensor value = recorder.add_input(one.view);
  for (int i = 0; i < calls; ++i) {
    BoundTensor next;
    recorder.append(plan(*stream, &recorder, OpId::add, {value, one}, next));
    value = next;
  }
  std::shared_ptr<Program> program;
  expect(recorder.finish({value}, arena, program).ok(), "finish");
  expect(program->info().calls == size_t(calls), "program.info().calls");
  expect(program->info().arena_bytes < program->info().intermediate_bytes, "the arena is smaller than its parts");
  return program;
}

struct Client {
  std::shared_ptr<Device> device;
  int number = 0;
};

void* run_client(void* argument) {
  auto& client = *static_cast<Client*>(argument);
  auto sink = std::make_shared<Sink>();
  std::shared_ptr<Stream> stream, second;
  expect(Stream::create(client.device, sink, stream).ok(), "Stream::create");
  expect(Stream::create(client.device, sink, second).ok(), "Stream::create");
  const BoundTensor one = filled(*client.device, 1);
  const std::shared_ptr<Program> program = capture_chain(stream, one, kChain);
  std::vector<float> values;

  // Eager: intermediates are let go of while they are in flight.
  BoundTensor value = one;
  for (int i = 1; i < kChain; ++i) value = add(*stream, value, one);
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, kChain), "eager chain");

  // Replays in a row, each from the last one's output.
  value = one;
  for (int i = 0; i < 5; ++i) {
    std::vector<BoundTensor> outputs;
    expect(program->replay({value}, outputs).ok(), "replay");
    value = outputs[0];
  }
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, 5 * kChain + 1), "replays");

  // Two programs with one arena, in turns.
  const std::shared_ptr<Program> sharing = capture_chain(stream, one, kChain / 2, program.get());
  expect(sharing->info().shares_arena && !program->info().shares_arena, "the second program shares the arena");
  value = one;
  for (int i = 0; i < 6; ++i) {
    std::vector<BoundTensor> outputs;
    expect((i % 2 ? sharing : program)->replay({value}, outputs).ok(), "replay");
    value = outputs[0];
  }
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, 3 * kChain + 3 * kChain / 2 + 1),
         "programs that share an arena");

  // Out to a file and back, while others use the pool.
  const std::string path =
      std::string("/tmp/lapidary-stress-") + std::to_string(getpid()) + "-" + std::to_string(client.number);
  bool saved = false;
  Code save_code = Code::kOk;
  push_save(*stream, value, path, 4096, sink->expect_answer(&saved, &save_code, nullptr));
  sink->wait(saved);
  std::shared_ptr<OpenFile> file;
  expect(save_code == Code::kOk && open_file(path, 4096, kElements * 4, "stress", file).ok(), "save");
  for (int i = 0; i < 20; ++i) {
    BoundTensor loaded = make_tensor(*client.device, DType::f32, {kElements});
    push_load(*stream, loaded, file, 4096);
    value = add(*stream, loaded, one);
  }
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, 3 * kChain + 3 * kChain / 2 + 2),
         "load");
  expect(truncate(path.c_str(), 5000) == 0, "truncate");
  push_load(*stream, make_tensor(*client.device, DType::f32, {kElements}), file, 4096);
  expect(synchronize(*stream, *sink) == Code::kFile, "a file that was cut is an error");
  unlink(path.c_str());

  // A tensor made on one stream, used on the other.
  for (int i = 0; i < 20; ++i) {
    BoundTensor first = add(*stream, one, one);
    second->push_wait(*stream);
    BoundTensor sum = add(*second, first, one);
    stream->push_wait(*second);
    value = add(*stream, sum, first);
  }
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, 5), "two streams");

  // An error sticks until synchronize() reports it, and to this stream only.
  push_failing_call(*stream);
  value = add(*stream, one, one);
  expect(read(*stream, *sink, value, values) == Code::kIndexOutOfRange, "sticky error");
  expect(read(*second, *sink, one, values) == Code::kOk, "the other stream works on");
  expect(synchronize(*stream, *sink) == Code::kIndexOutOfRange, "synchronize reports the error");
  expect(synchronize(*stream, *sink) == Code::kOk, "synchronize clears the error");
  value = add(*stream, one, one);
  expect(read(*stream, *sink, value, values) == Code::kOk && all_equal(values, 2), "the stream works again");

  // Closed with work in flight, in either order: what was asked for is answered, and all memory is let go.
  for (int i = 0; i < kChain; ++i) value = add(*stream, value, one);
  std::vector<BoundTensor> outputs;
  expect(program->replay({value}, outputs).ok(), "replay");
  second->push_wait(*stream);
  bool done = false;
  Code code = Code::kOk;
  second->push_read({outputs[0]}, sink->expect_answer(&done, &code, &values));
  (client.number % 2 ? stream : second)->close();
  (client.number % 2 ? second : stream)->close();
  sink->wait(done);
  expect(code == Code::kOk || code == Code::kDisposed, "a read in flight is answered");
  done = false;
  stream->push_synchronize(sink->expect_answer(&done, &code, nullptr));
  sink->wait(done);
  expect(code == Code::kDisposed, "a closed stream says so");
  return nullptr;
}

void run_round(int threads) {
  DeviceOptions options;
  options.threads = threads;
  options.guard = true;
  Client clients[kClients];
  std::shared_ptr<Device> device;
  expect(open_cpu_device(options, device).ok(), "open");
  pthread_t ids[kClients];
  for (int i = 0; i < kClients; ++i) {
    clients[i] = {device, i};
    pthread_create(&ids[i], nullptr, &run_client, &clients[i]);
  }
  for (pthread_t id : ids) pthread_join(id, nullptr);
  for (Client& client : clients) client.device.reset();
  expect(device->memory().buffers <= 1, "all buffers are returned (the scratch buffer may stay)");
  expect(device->take_defect().empty(), "guard regions");
}

// The control for all tests that rely on guard regions: a byte before or behind a buffer does not go unnoticed.
void check_guards() {
  DeviceOptions options;
  options.threads = 1;
  options.guard = true;
  std::shared_ptr<Device> device;
  expect(open_cpu_device(options, device).ok(), "open");
  for (int64_t bytes : {0, 1, 63, 64, 300, 5 << 20}) {
    for (int64_t at : {int64_t(-128), int64_t(-1), bytes, bytes + 127}) {
      BufferRef buffer;
      expect(device->allocate(bytes, buffer).ok(), "allocate");
      buffer->data()[at] ^= 1;
      buffer.reset();
      expect(!device->take_defect().empty(), "a write outside a buffer is reported");
      expect(device->take_defect().empty(), "and reported once");
    }
    BufferRef buffer;
    expect(device->allocate(bytes, buffer).ok(), "allocate");
    bool nan = true;
    for (int64_t i = 0; i < bytes; ++i) nan &= buffer->data()[i] == 0xFF;
    expect(nan, "fresh memory holds NaN");
    memset(buffer->data(), 0, size_t(bytes));
    buffer.reset();
    expect(device->take_defect().empty(), "a buffer may be written to its last byte");
  }
}

}  // namespace
}  // namespace lapidary

int main() {
  lapidary::check_guards();
  for (int round = 0; round < lapidary::kRounds; ++round) lapidary::run_round(1 + round % 3);
  const int failed = lapidary::failures.load();
  printf("%d passed, %d failed, 0 skipped\n", lapidary::checks.load() - failed, failed);
  return failed != 0;
}
