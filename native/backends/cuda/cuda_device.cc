// cuda_device.cc: an NVIDIA GPU as a device: the kernels of the CUDA library, lanes (streams) and an allocator of its memory.
//
// An execution queues all its calls and then waits once for the device, so that whoever hears of its end finds the memory it used free
// to be used again. The wait costs some 10 µs per batch of calls or replay; in exchange nothing above has to know that a GPU runs behind
// the processor's back.
#include <cerrno>
#include <cstring>
#include <iterator>

#include "backends/cuda/allocator.h"
#include "backends/cuda/cuda_device.h"
#include "core/system.h"
#include "ops/packed_form.h"

namespace lapidary {
namespace {

// Compute capabilities with a green acceptance run, recorded in docs/gpu-acceptance.md. None so far.
constexpr int kVerified[] = {0};

constexpr int kLeastCapability = 80;  // Ampere: mma.sync of bf16, cp.async
constexpr size_t kPieceBytes = size_t(8) << 20;

bool verified(int capability) {
  for (int entry : kVerified) {
    if (entry == capability) return true;
  }
  return false;
}

std::string capability_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// Why the GPU cannot be opened without { unverified: true }, or at all; empty: it can.
std::string refusal(const LapidaryCudaDevice& gpu, bool unverified) {
  const std::string who =
      std::string(gpu.name) + " (compute capability " + capability_text(gpu.compute_capability) + ")";
  if (gpu.compute_capability < kLeastCapability) {
    return who + ": expected compute capability " + capability_text(kLeastCapability) + " or newer (Ampere)";
  }
  if (verified(gpu.compute_capability) || unverified) return "";
  return who +
         ": no acceptance run of the kernels is recorded for this architecture (docs/gpu-acceptance.md); { unverified: "
         "true } "
         "opens it all the same";
}

// A mapped file on a device that cannot read host memory: its bytes come over at the first use, on the stream's thread.
class ImportedFile final : public Buffer {
 public:
  ImportedFile(BufferRef file, BufferRef memory, std::shared_ptr<CudaLanes> lanes)
      : Buffer(memory->data(), file->bytes()),
        file_(std::move(file)),
        memory_(std::move(memory)),
        lanes_(std::move(lanes)) {}
  bool read_only() const override { return true; }
  bool readable() const override {
    std::lock_guard lock(mutex_);
    if (!file_->readable()) return false;
    if (!imported_) lanes_->copy_in(data(), file_->data(), size_t(bytes()));
    imported_ = true;
    return true;
  }

 private:
  const BufferRef file_;
  const BufferRef memory_;
  const std::shared_ptr<CudaLanes> lanes_;
  mutable std::mutex mutex_;
  mutable bool imported_ = false;
};

// Small inputs and outputs have places of their own, so that one graph serves every replay; copying them costs less than 2 µs each.
// Large ones, and those that are written in place, are used where they lie: their addresses are the keys of graphs.
class CudaReplay final : public Replay {
 public:
  CudaReplay(const LapidaryCudaApi& api, LapidaryCudaReplay* replay) : api_(api), replay_(replay) {}
  ~CudaReplay() override { api_.replay_destroy(replay_); }

  Status prepare(CudaAllocator& allocator, const std::vector<ReplayBinding>& bindings) {
    bindings_ = bindings;
    staged_.resize(bindings.size());
    for (size_t i = 0; i < bindings.size(); ++i) {
      if (bindings[i].use == ReplayBinding::mutated || bindings[i].bytes > kStagedBytes) continue;
      LAPIDARY_RETURN_IF_ERROR(allocator.allocate(bindings[i].bytes, staged_[i]));
    }
    return {};
  }

  void place(std::vector<unsigned char*>& bindings) override {
    for (size_t i = 0; i < bindings.size(); ++i) {
      if (staged_[i]) bindings[i] = staged_[i]->data();
    }
  }

  int run(const std::vector<unsigned char*>& bindings, const Call* const* calls, const void* const* kernels,
          size_t count, const bool* stop, LapidaryCudaFailure* failure) {
    keys_.clear();
    before_.clear();
    after_.clear();
    for (size_t i = 0; i < bindings.size(); ++i) {
      const size_t bytes = size_t(bindings_[i].bytes);
      if (!staged_[i]) {
        keys_.push_back(bindings[i]);
      } else if (bindings_[i].use == ReplayBinding::read) {
        before_.push_back({staged_[i]->data(), bindings[i], bytes});
      } else {
        after_.push_back({bindings[i], staged_[i]->data(), bytes});
      }
    }
    return api_.replay_run(replay_, keys_.data(), keys_.size(), before_.data(), before_.size(), after_.data(),
                           after_.size(), calls, kernels, count, stop, failure);
  }

 private:
  static constexpr int64_t kStagedBytes = int64_t(4) << 20;
  const LapidaryCudaApi& api_;
  LapidaryCudaReplay* replay_;
  std::vector<ReplayBinding> bindings_;
  std::vector<BufferRef> staged_;  // null: used where it lies
  std::vector<const void*> keys_;
  std::vector<LapidaryCudaCopy> before_, after_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(const LapidaryCudaApi& api, int index, const LapidaryCudaDevice& gpu, const DeviceOptions& options)
      : api_(api),
        index_(index),
        gpu_(gpu),
        lanes_(std::make_shared<CudaLanes>(api, index)),
        allocator_(std::make_shared<CudaAllocator>(lanes_, options.guard)) {
    isa_ = api.emulated ? "sm80_emulated" : "sm80";
    traits_.kind = "cuda";
    traits_.isa = isa_.c_str();
    traits_.threads = gpu.multiprocessors;
    traits_.panel_layout = kFragmentLayoutVersion;
  }

  // Whether the GPU lets this process work at all.
  Status start() {
    CudaLanes::Borrowed borrowed(*lanes_);
    if (borrowed.lane) return {};
    return error(borrowed.status == 2 ? Code::kOutOfMemory : Code::kDeviceUnavailable,
                 "Device.open: cuda:%d: %s: CUDA error %d: %s", index_, gpu_.name, borrowed.status,
                 api_.error_text(borrowed.status));
  }

  const DeviceTraits& traits() const override { return traits_; }

  DeviceInfo info() const override {
    DeviceInfo info;
    info.kind = "cuda:" + std::to_string(index_);
    info.name = gpu_.name;
    info.isa = isa_;
    for (size_t op = 0; op < size_t(OpId::kCount); ++op) {
      if (api_.find_kernel(int(op))) info.kernels.emplace_back(contract(OpId(op)).name, isa_);
    }
    int driver = 0;
    api_.driver_version(&driver);
    int64_t free_bytes = 0;
    api_.free_memory(index_, &free_bytes);
    info.notes.emplace_back("driver", "for CUDA " + cuda_version_text(driver));
    info.notes.emplace_back("compute capability", capability_text(gpu_.compute_capability));
    info.notes.emplace_back("library", std::string("built for ") + api_.architectures);
    info.notes.emplace_back("graphs", std::to_string(api_.graphs_made()) + " captured by this process");
    if (const double milliseconds = api_.replay_milliseconds(); milliseconds >= 0) {
      info.notes.emplace_back("replay milliseconds", std::to_string(milliseconds));
    }
    info.notes.emplace_back("free memory", std::to_string(free_bytes >> 20) + " MiB");
    info.threads = gpu_.multiprocessors;
    info.memory_limit = gpu_.memory_bytes;
    return info;
  }

  MemoryStats memory() const override { return allocator_->stats(); }
  Status allocate(int64_t bytes, BufferRef& out) override { return allocator_->allocate(bytes, out); }
  std::string take_defect() override { return lanes_->take_defect(); }

  Status import_file(BufferRef file, BufferRef& out) override {
    BufferRef memory;
    LAPIDARY_RETURN_IF_ERROR(allocate(file->bytes(), memory));
    out = std::make_shared<ImportedFile>(std::move(file), std::move(memory), lanes_);
    return {};
  }

  Status resolve(const Call& call, Step& step) const override {
    step = {&call, api_.find_kernel(int(call.op))};
    if (step.kernel) return {};
    return error(Code::kDeviceUnavailable, "%s: no kernel for this device (cuda, %s)", contract(call.op).name,
                 isa_.c_str());
  }

  bool execute(const Step* steps, size_t count, const std::atomic<bool>& stop, ExecutionError& failure) override {
    CudaLanes::Borrowed borrowed(*lanes_);
    if (!borrowed.lane) return no_lane(borrowed.status, failure);
    const Calls calls(steps, count);
    LapidaryCudaFailure report;
    const int status =
        api_.execute(borrowed.lane, calls.calls.data(), calls.kernels.data(), count, flag(stop), &report);
    return status == 0 || fail(report, failure);
  }

  std::unique_ptr<Replay> make_replay(const std::vector<ReplayBinding>& bindings) override {
    LapidaryCudaReplay* made = nullptr;
    if (api_.replay_create(index_, &made) != 0) return nullptr;  // then it runs without
    auto replay = std::make_unique<CudaReplay>(api_, made);
    if (!replay->prepare(*allocator_, bindings).ok()) return nullptr;
    return replay;
  }

  bool replay(Replay& replay, const std::vector<unsigned char*>& bindings, const Step* steps, size_t count,
              const std::atomic<bool>& stop, ExecutionError& failure) override {
    const Calls calls(steps, count);
    LapidaryCudaFailure report;
    const int status = static_cast<CudaReplay&>(replay).run(bindings, calls.calls.data(), calls.kernels.data(), count,
                                                            flag(stop), &report);
    return status == 0 || fail(report, failure);
  }

  void copy_in(unsigned char* device, const void* host, size_t bytes) override { lanes_->copy_in(device, host, bytes); }
  void fill_zero(unsigned char* device, size_t bytes) override { lanes_->fill(device, 0, bytes); }
  void copy_out(void* host, const unsigned char* device, size_t bytes) override {
    lanes_->copy_out(host, device, bytes);
  }

  FileTransfer read_file(unsigned char* device, int descriptor, int64_t offset, int64_t bytes) override {
    return by_pieces(bytes, [&](unsigned char* piece, int64_t at, size_t size) {
      const int64_t count = read_at(descriptor, piece, size, offset + at);
      if (count > 0) lanes_->copy_in(device + at, piece, size_t(count));
      return count;
    });
  }
  FileTransfer write_file(const unsigned char* device, int descriptor, int64_t offset, int64_t bytes) override {
    FileTransfer done = by_pieces(bytes, [&](unsigned char* piece, int64_t at, size_t size) {
      lanes_->copy_out(piece, device + at, size);
      return write_at(descriptor, piece, size, offset + at);
    });
    if (done.bytes < bytes && done.error == 0) done.error = EIO;
    return done;
  }

 private:
  // The library takes arrays of pointers.
  struct Calls {
    Calls(const Step* steps, size_t count) {
      calls.reserve(count);
      kernels.reserve(count);
      for (size_t i = 0; i < count; ++i) {
        calls.push_back(steps[i].call);
        kernels.push_back(steps[i].kernel);
      }
    }
    std::vector<const Call*> calls;
    std::vector<const void*> kernels;
  };

  // Read with relaxed atomic loads on the other side; an atomic bool is a bool.
  static const bool* flag(const std::atomic<bool>& stop) {
    static_assert(sizeof(std::atomic<bool>) == sizeof(bool) && std::atomic<bool>::is_always_lock_free);
    return reinterpret_cast<const bool*>(&stop);
  }

  bool no_lane(int status, ExecutionError& failure) {
    failure = {Code::kOutOfMemory, 0,
               "no stream: CUDA error " + std::to_string(status) + ": " + api_.error_text(status)};
    return false;
  }

  bool fail(const LapidaryCudaFailure& report, ExecutionError& failure) {
    failure.step = report.step;
    failure.message = report.message;
    if (report.stopped) {
      failure.code = Code::kDisposed;
      failure.message = "the stream was disposed";
    } else {
      failure.code = report.error == 0 ? Code(report.code) : report.error == 2 ? Code::kOutOfMemory : Code::kInternal;
    }
    return false;
  }

  // Through a buffer, until all is done, the file ends or the system refuses.
  template <class Move>
  static FileTransfer by_pieces(int64_t bytes, Move move) {
    FileTransfer done;
    const std::unique_ptr<unsigned char[]> buffer(new (std::nothrow) unsigned char[kPieceBytes]);
    if (!buffer) done.error = ENOMEM;
    while (done.bytes < bytes && done.error == 0) {
      const size_t size = size_t(std::min<int64_t>(bytes - done.bytes, kPieceBytes));
      const int64_t count = move(buffer.get(), done.bytes, size);
      if (count > 0) {
        done.bytes += count;
      } else if (count == 0) {
        break;
      } else if (errno != EINTR) {
        done.error = errno;
      }
    }
    return done;
  }

  const LapidaryCudaApi& api_;
  const int index_;
  const LapidaryCudaDevice gpu_;
  std::string isa_;
  DeviceTraits traits_;
  const std::shared_ptr<CudaLanes> lanes_;
  const std::shared_ptr<CudaAllocator> allocator_;
};

}  // namespace

Status open_cuda_device(const DeviceOptions& options, int index, std::shared_ptr<Device>& out) {
  const bool emulated = options.isa == "sm80_emulated";
  if (!options.isa.empty() && options.isa != "sm80" && !emulated) {
    return error(Code::kDeviceUnavailable, "Device.open: isa: expected sm80, the kernels of GPUs, got '%s'",
                 options.isa.c_str());
  }
  const LapidaryCudaApi* api = nullptr;
  int count = 0;
  Status status = open_cuda_library(emulated, api);
  if (status.ok()) status = check_cuda_driver(*api, count);
  if (!status.ok()) return Status(status.code(), "Device.open: " + status.message());
  if (index >= count) {
    return error(Code::kDeviceUnavailable, "Device.open: cuda:%d: expected a GPU from 0 to %d", index, count - 1);
  }
  LapidaryCudaDevice gpu;
  if (const int error_code = api->device(index, &gpu); error_code != 0) {
    return error(Code::kDeviceUnavailable, "Device.open: cuda:%d: CUDA error %d: %s", index, error_code,
                 api->error_text(error_code));
  }
  if (const std::string why = emulated ? "" : refusal(gpu, options.unverified); !why.empty()) {
    return error(Code::kDeviceUnavailable, "Device.open: cuda:%d: %s", index, why.c_str());
  }
  auto device = std::make_shared<CudaDevice>(*api, index, gpu, options);
  LAPIDARY_RETURN_IF_ERROR(device->start());
  out = std::move(device);
  return {};
}

std::vector<GpuListing> list_cuda_devices() {
  const LapidaryCudaApi* api = nullptr;
  int count = 0;
  Status status = open_cuda_library(false, api);
  if (status.ok()) status = check_cuda_driver(*api, count);
  if (!status.ok()) return {{.kind = "cuda", .reason = status.message()}};
  int driver = 0;
  api->driver_version(&driver);
  std::vector<GpuListing> listings;
  for (int index = 0; index < count; ++index) {
    GpuListing listing;
    listing.kind = "cuda:" + std::to_string(index);
    listing.driver = "CUDA " + cuda_version_text(driver);
    LapidaryCudaDevice gpu;
    if (const int error_code = api->device(index, &gpu); error_code != 0) {
      listing.reason = "CUDA error " + std::to_string(error_code) + ": " + api->error_text(error_code);
    } else {
      listing.name = gpu.name;
      listing.compute_capability = capability_text(gpu.compute_capability);
      listing.memory = gpu.memory_bytes;
      listing.reason = refusal(gpu, false);
    }
    listings.push_back(std::move(listing));
  }
  return listings;
}

}  // namespace lapidary
