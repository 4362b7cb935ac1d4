#include "runtime/program.h"

#include <map>

namespace lapidary {
namespace {

// Any non-null, 128-byte aligned address: contracts take a null pointer for an absent input.
unsigned char* const kPlaceholder = reinterpret_cast<unsigned char*>(uintptr_t(1) << 20);

bool same_form(const TensorView& a, const TensorView& b) {
  if (a.dtype != b.dtype || a.layout != b.layout || a.rank != b.rank || a.panel_rows != b.panel_rows ||
      a.group != b.group || a.scale_dtype != b.scale_dtype || a.flags != b.flags) {
    return false;
  }
  for (int i = 0; i < a.rank; ++i) {
    if (a.dims[i] != b.dims[i]) return false;
  }
  return a.layout == Layout::panels || is_contiguous(a);
}

TensorView& argument_view(Call& call, int argument) {
  return argument < kMaxInputs ? call.in[argument] : call.out[argument - kMaxInputs];
}

}  // namespace

PlannedBuffer::PlannedBuffer(const void* recorder, int64_t bytes) : Buffer(kPlaceholder, bytes), recorder_(recorder) {}

struct ReplayItem final : WorkItem {
  void run(Stream& stream) override {
    if (stream.failed()) return;
    Program& self = *program;
    for (const auto* files : {&self.mapped_files_, &mapped_inputs}) {
      for (const BufferRef& file : *files) {
        if (file->readable()) continue;
        stream.fail(Code::kFile, "program.run: the mapped file of a tensor has become shorter");
        return;
      }
    }
    std::vector<unsigned char*> places = bindings;
    if (self.replay_) self.replay_->place(places);
    for (const Program::Patch& patch : self.patches_) {
      argument_view(self.calls_[patch.call]->call, patch.argument).data = places[patch.binding] + patch.offset;
    }
    if (self.replay_) {
      stream.replay(*self.replay_, bindings, self.steps_.data(), self.steps_.size());
    } else {
      stream.execute(self.steps_.data(), self.steps_.size());
    }
  }
  std::shared_ptr<Program> program;
  std::vector<unsigned char*> bindings;  // base addresses of inputs, then of fresh outputs
  std::vector<BufferRef> buffers;        // that keep them alive
  std::vector<BufferRef> mapped_inputs;
};

Status Program::replay(const std::vector<BoundTensor>& inputs, std::vector<BoundTensor>& outputs) {
  if (stream_->closed()) return error(Code::kDisposed, "program.run: the program's stream has been disposed");
  if (inputs.size() != inputs_.size()) {
    return error(Code::kInvalidArgument, "program.run: expected %zu inputs, got %zu", inputs_.size(), inputs.size());
  }
  auto item = std::make_unique<ReplayItem>();
  item->program = shared_from_this();
  item->bindings.reserve(inputs.size() + fresh_bytes_.size());
  item->buffers.reserve(inputs.size() + fresh_bytes_.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!same_form(inputs[i].view, inputs_[i].view)) {
      return error(Code::kShapeMismatch, "program.run: input %zu: expected a contiguous %s as captured, got %s", i,
                   describe(inputs_[i].view).c_str(), describe(inputs[i].view).c_str());
    }
    if (inputs[i].buffer->read_only()) {
      if (written_inputs_[i]) {
        return error(Code::kInvalidArgument,
                     "program.run: input %zu: the program writes into it, but it is a mapped file (read-only)", i);
      }
      item->mapped_inputs.push_back(inputs[i].buffer);
    }
    item->bindings.push_back(inputs[i].view.data);
    item->buffers.push_back(inputs[i].buffer);
  }
  for (int64_t bytes : fresh_bytes_) {
    BufferRef buffer;
    LAPIDARY_RETURN_IF_ERROR(stream_->device().allocate(bytes, buffer));
    item->bindings.push_back(buffer->data());
    item->buffers.push_back(std::move(buffer));
  }
  for (const Output& output : outputs_) {
    BoundTensor bound{output.view, output.buffer};
    if (output.kind != OutputKind::fixed) {
      bound.view.data = item->bindings[output.binding] + output.offset;
      bound.buffer = item->buffers[output.binding];
    }
    outputs.push_back(std::move(bound));
  }
  stream_->push(std::move(item));
  return {};
}

BoundTensor Recorder::add_input(const TensorView& like) {
  BoundTensor input{like, plan_buffer(storage_bytes(like))};
  input.view.data = input.buffer->data();
  int64_t stride = 1;
  for (int i = like.rank - 1; i >= 0; --i) {
    input.view.strides[i] = stride;
    stride *= like.dims[i];
  }
  inputs_.push_back(input);
  return input;
}

Status Recorder::finish(const std::vector<BoundTensor>& outputs, const Program* arena, std::shared_ptr<Program>& out) {
  auto program = std::make_shared<Program>();
  program->stream_ = stream_;
  program->inputs_ = std::move(inputs_);
  program->calls_ = std::move(calls_);
  program->written_inputs_.resize(program->inputs_.size());

  // What each placeholder becomes: an input, a fresh output, or (the default) a place in the arena.
  std::map<const Buffer*, uint32_t> bindings;
  for (size_t i = 0; i < program->inputs_.size(); ++i) bindings[program->inputs_[i].buffer.get()] = uint32_t(i);
  const uint32_t input_count = uint32_t(program->inputs_.size());
  for (const BoundTensor& output : outputs) {
    Program::Output bound{output.view, Program::OutputKind::fixed, 0, nullptr, 0};
    if (!output.buffer->planned()) {
      bound.buffer = output.buffer;
    } else {
      bound.offset = output.view.data - output.buffer->data();
      auto [found, inserted] =
          bindings.try_emplace(output.buffer.get(), input_count + uint32_t(program->fresh_bytes_.size()));
      if (inserted) program->fresh_bytes_.push_back(output.buffer->bytes());
      bound.binding = found->second;
      bound.kind = found->second < input_count ? Program::OutputKind::input : Program::OutputKind::fresh;
    }
    program->outputs_.push_back(std::move(bound));
  }

  std::map<const Buffer*, size_t> intermediates;
  std::vector<Lifetime> lifetimes;
  struct Placement {
    size_t call;
    int argument;
    size_t lifetime;
    int64_t offset;
  };
  std::vector<Placement> placements;
  for (size_t c = 0; c < program->calls_.size(); ++c) {
    OwnedCall& owned = *program->calls_[c];
    for (int argument = 0; argument < kMaxInputs + kMaxOutputs; ++argument) {
      const Buffer* buffer = owned.buffers[argument].get();
      if (!buffer) continue;
      if (buffer->read_only()) program->mapped_files_.push_back(owned.buffers[argument]);
      if (!buffer->planned()) continue;
      const int64_t offset = argument_view(owned.call, argument).data - buffer->data();
      if (auto bound = bindings.find(buffer); bound != bindings.end()) {
        program->patches_.push_back({uint32_t(c), uint8_t(argument), bound->second, offset});
        const bool is_input = argument < kMaxInputs && bound->second < input_count;
        if (is_input && contract(owned.call.op).inputs[argument].mutated)
          program->written_inputs_[bound->second] = true;
        continue;
      }
      auto [found, inserted] = intermediates.try_emplace(buffer, lifetimes.size());
      if (inserted) lifetimes.push_back({buffer->bytes(), c, c, 0});
      lifetimes[found->second].last = c;
      placements.push_back({c, argument, found->second, offset});
    }
    program->steps_.push_back(owned.step);
  }

  program->info_.calls = program->calls_.size();
  program->info_.arena_bytes = plan_arena(lifetimes);
  for (const Lifetime& lifetime : lifetimes) program->info_.intermediate_bytes += lifetime.bytes;
  if (arena && arena->stream_ == stream_ && program->info_.arena_bytes <= arena->arena_->bytes()) {
    program->arena_ = arena->arena_;
    program->info_.shares_arena = true;
  } else {
    LAPIDARY_RETURN_IF_ERROR(stream_->device().allocate(program->info_.arena_bytes, program->arena_));
  }
  for (const Placement& placement : placements) {
    argument_view(program->calls_[placement.call]->call, placement.argument).data =
        program->arena_->data() + lifetimes[placement.lifetime].offset + placement.offset;
  }
  // The placeholders are done; fixed tensors (weights, caches) stay owned by the calls.
  for (auto& owned : program->calls_) {
    for (BufferRef& buffer : owned->buffers) {
      if (buffer && buffer->planned()) buffer.reset();
    }
  }
  std::vector<ReplayBinding> described;
  for (size_t i = 0; i < program->inputs_.size(); ++i) {
    described.push_back({storage_bytes(program->inputs_[i].view),
                         program->written_inputs_[i] ? ReplayBinding::mutated : ReplayBinding::read});
  }
  for (int64_t bytes : program->fresh_bytes_) described.push_back({bytes, ReplayBinding::written});
  program->replay_ = stream_->device().make_replay(described);
  out = std::move(program);
  return {};
}

}  // namespace lapidary
