// program.h: a sequence of calls, captured once and replayed with other inputs.
//
// While a Recorder is active, calls are planned as usual but appended to it instead of a stream, and the buffers of
// their outputs are placeholders. finish() finds out how long each intermediate lives and gives all of them places in
// one arena; inputs and outputs are bound anew at each replay. A replay is one item on the stream and one run of the
// pool.
#pragma once
#include <memory>
#include <vector>

#include "runtime/stream.h"

namespace lapidary {

// Stands for memory that exists only during a replay.
class PlannedBuffer final : public Buffer {
 public:
  PlannedBuffer(const void* recorder, int64_t bytes);
  bool planned() const override { return true; }
  // The recorder that made it; meaningless afterwards, compared only.
  const void* recorder() const { return recorder_; }

 private:
  const void* recorder_;
};

struct ProgramInfo {
  size_t calls = 0;
  int64_t arena_bytes = 0;         // what the intermediates take, sharing memory
  int64_t intermediate_bytes = 0;  // what they would take each on its own
  bool shares_arena = false;       // with another program
};

class Program : public std::enable_shared_from_this<Program> {
 public:
  // Binds inputs (same dtype, layout, dims and strides as captured), allocates outputs, and queues the replay on the
  // stream that the program was captured for.
  Status replay(const std::vector<BoundTensor>& inputs, std::vector<BoundTensor>& outputs);

  const std::shared_ptr<Stream>& stream() const { return stream_; }
  const std::vector<BoundTensor>& inputs() const { return inputs_; }
  const ProgramInfo& info() const { return info_; }

 private:
  friend class Recorder;
  friend struct ReplayItem;

  // A view argument whose base address is known only at replay.
  struct Patch {
    uint32_t call;
    uint8_t argument;  // inputs, then outputs, as in OwnedCall::buffers
    uint32_t binding;  // index into inputs, or inputs.size() + index into fresh outputs
    int64_t offset;    // bytes from the binding's base
  };
  enum class OutputKind : uint8_t { fresh, input, fixed };
  struct Output {
    TensorView view;
    OutputKind kind;
    uint32_t binding;  // fresh: as in Patch; input: index of the input it aliases
    BufferRef buffer;  // fixed
    int64_t offset;    // fresh and input: bytes from the base
  };

  std::shared_ptr<Stream> stream_;
  std::vector<std::unique_ptr<OwnedCall>> calls_;
  std::vector<Step> steps_;
  std::vector<Patch> patches_;
  std::vector<BoundTensor> inputs_;  // as captured; buffers are placeholders
  std::vector<Output> outputs_;
  std::vector<int64_t> fresh_bytes_;
  std::vector<BufferRef> mapped_files_;  // constants whose file may shrink
  std::vector<bool> written_inputs_;
  BufferRef arena_;
  std::unique_ptr<Replay> replay_;  // of the stream's device; null: none
  ProgramInfo info_;
};

class Recorder {
 public:
  explicit Recorder(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}

  const std::shared_ptr<Stream>& stream() const { return stream_; }
  BufferRef plan_buffer(int64_t bytes) const { return std::make_shared<PlannedBuffer>(this, bytes); }
  // Declares the next input; contiguous.
  BoundTensor add_input(const TensorView& like);
  void append(std::unique_ptr<OwnedCall> call) { calls_.push_back(std::move(call)); }
  // `arena`: a program of the same stream whose arena serves this one too where it is large enough; may be null. No
  // intermediate outlives a replay, and replays of one stream run one after the other.
  Status finish(const std::vector<BoundTensor>& outputs, const Program* arena, std::shared_ptr<Program>& out);

 private:
  std::shared_ptr<Stream> stream_;
  std::vector<std::unique_ptr<OwnedCall>> calls_;
  std::vector<BoundTensor> inputs_;
};

// One intermediate: its size and the first and last call that touches it.
struct Lifetime {
  int64_t bytes = 0;
  size_t first = 0;
  size_t last = 0;
  int64_t offset = 0;  // out
};

// Gives each an offset such that no two that live at once overlap, and returns the bytes needed. Greedy by size:
// Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference" (arXiv:2001.03288), algorithm 3.
int64_t plan_arena(std::vector<Lifetime>& lifetimes);

}  // namespace lapidary
