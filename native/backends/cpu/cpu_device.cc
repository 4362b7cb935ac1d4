// cpu_device.cc: the CPU as a device: one kernel table (an overlay of instruction sets), one pool of threads, one
// allocator.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "backends/cpu/allocator.h"
#include "backends/cpu/amx.h"
#include "backends/cpu/file_reading.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/kernel_sets.h"
#include "backends/cpu/pool.h"
#include "core/system.h"

namespace lapidary {
namespace {

constexpr int kMaxThreads = 256;

struct TableEntry {
  const Kernel* kernel = nullptr;
  const char* isa = nullptr;
};

void start_amx_thread() {
  if (amx_report().available) amx_request_permission();
}

std::string amx_note() {
  const AmxReport& report = amx_report();
  static const char* const results[] = {"skipped", "passed", "failed"};
  std::string note = report.available ? "available" : std::string("not available: ") + report.reason;
  note += std::string("; self-test ") + results[size_t(report.self_test)];
  if (report.self_test == AmxSelfTest::skipped) return note;
  return note + ", " + std::to_string(report.losses) + " of " + std::to_string(report.holds) + " held tiles lost";
}

class CpuDevice final : public Device {
 public:
  CpuDevice(const DeviceOptions& options, std::vector<IsaInfo> isas, std::string isa, int threads)
      : isas_(std::move(isas)),
        isa_(std::move(isa)),
        allocator_(std::make_shared<Allocator>(options.guard)),
        pool_(threads, &start_amx_thread) {
    traits_.isa = isa_.c_str();
    traits_.threads = threads;
    traits_.panel_rows = isa_panel_rows(isa_);
    for (IsaInfo& isa_info : isas_) {
      if (!isa_info.supported || (isa_hidden(isa_info.name) && isa_info.name != isa_)) continue;
      isa_info.active = true;
      overlay(isa_info.name);
      if (isa_info.name == isa_) break;
    }
  }

  Status start() { return pool_.start(); }

  const DeviceTraits& traits() const override { return traits_; }
  void start_thread() const override { start_amx_thread(); }

  DeviceInfo info() const override {
    DeviceInfo info;
    info.kind = "cpu";
    static const std::string name = processor_name();  // read from a file, and always the same
    info.name = name;
    info.isa = isa_;
    info.isas = isas_;
    for (size_t op = 0; op < size_t(OpId::kCount); ++op) {
      if (table_[op].kernel) info.kernels.emplace_back(contract(OpId(op)).name, table_[op].isa);
    }
    info.notes.emplace_back("amx", amx_note());
    info.threads = pool_.threads();
    info.memory_limit = allocator_->limit();
    return info;
  }

  MemoryStats memory() const override { return allocator_->stats(); }
  Status allocate(int64_t bytes, BufferRef& out) override { return allocator_->allocate(bytes, out); }
  std::string take_defect() override { return allocator_->take_defect(); }

  Status resolve(const Call& call, Step& step) const override {
    step = {&call, table_[size_t(call.op)].kernel};
    if (step.kernel) return {};
    return error(Code::kDeviceUnavailable, "%s: no kernel for this device (cpu, %s)", contract(call.op).name,
                 isa_.c_str());
  }

  bool execute(const Step* steps, size_t count, const std::atomic<bool>& stop, ExecutionError& failure) override {
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) {
      const Kernel& kernel = *static_cast<const Kernel*>(steps[i].kernel);
      if (kernel.scratch) bytes = std::max(bytes, kernel.scratch(*steps[i].call, pool_.threads()));
    }
    std::lock_guard lock(scratch_mutex_);
    if (!scratch_ || scratch_->bytes() < int64_t(bytes)) {
      scratch_.reset();
      Status status = allocator_->allocate(int64_t(bytes), scratch_);
      if (!status.ok()) {
        failure = {status.code(), 0, status.message()};
        return false;
      }
    }
    return pool_.run(steps, count, scratch_->data(), stop, failure);
  }

  FileTransfer read_file(unsigned char* device, int descriptor, int64_t offset, int64_t bytes) override {
    FileReading reading;
    reading.descriptor = descriptor;
    reading.offset = offset;
    reading.to = device;
    reading.bytes = bytes;
    Call call;
    set_file_reading(call, &reading);
    const Step step = {&call, &read_file_kernel};
    const std::atomic<bool> never{false};
    ExecutionError none;
    pool_.run(&step, 1, nullptr, never, none);
    return {std::min(bytes, reading.first_missing.load()), reading.error.load()};
  }
  FileTransfer write_file(const unsigned char* device, int descriptor, int64_t offset, int64_t bytes) override {
    FileTransfer done;
    while (done.bytes < bytes) {
      const int64_t count = write_at(descriptor, device + done.bytes, size_t(bytes - done.bytes), offset + done.bytes);
      if (count <= 0) {
        done.error = count == 0 ? EIO : errno;
        break;
      }
      done.bytes += count;
    }
    return done;
  }
  void copy_in(unsigned char* device, const void* host, size_t bytes) override {
    if (bytes) memcpy(device, host, bytes);  // an empty array has no address
  }
  void fill_zero(unsigned char* device, size_t bytes) override { zero_memory(device, bytes); }
  void copy_out(void* host, const unsigned char* device, size_t bytes) override {
    if (bytes) memcpy(host, device, bytes);
  }

 private:
  void overlay(const std::string& isa) {
    for (int i = 0; i < lapidary_kernel_set_count; ++i) {
      const IsaKernelSet& entry = lapidary_kernel_sets[i];
      if (isa != entry.isa) continue;
      for (int k = 0; k < entry.set->count; ++k) {
        const Kernel& kernel = entry.set->kernels[k];
        table_[size_t(kernel.op)] = {&kernel, entry.isa};
      }
    }
  }

  std::vector<IsaInfo> isas_;
  std::string isa_;
  DeviceTraits traits_;
  TableEntry table_[size_t(OpId::kCount)];
  std::shared_ptr<Allocator> allocator_;
  Pool pool_;
  std::mutex scratch_mutex_;
  BufferRef scratch_;
};

}  // namespace

Status open_cpu_device(const DeviceOptions& options, std::shared_ptr<Device>& out) {
  std::vector<IsaInfo> isas = detect_isas();
  std::string chosen;
  std::string names;
  for (const IsaInfo& isa : isas) {
    if (!isa.supported) continue;
    names += (names.empty() ? "" : ", ") + isa.name;
    if (options.isa.empty() ? !isa_hidden(isa.name) : isa.name == options.isa) chosen = isa.name;
  }
  if (chosen.empty()) {
    std::string reason = "unknown name";
    for (const IsaInfo& isa : isas) {
      if (isa.name == options.isa) reason = isa.reason;
    }
    return error(Code::kDeviceUnavailable, "Device.open: isa: expected one of %s, got '%s' (%s)", names.c_str(),
                 options.isa.c_str(), reason.c_str());
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return error(Code::kInvalidArgument, "Device.open: threads: expected 1 to %d, got %d", kMaxThreads,
                 options.threads);
  }
  const int threads = options.threads ? options.threads : usable_cores();
  auto device = std::make_shared<CpuDevice>(options, std::move(isas), chosen, threads);
  LAPIDARY_RETURN_IF_ERROR(device->start());
  out = std::move(device);
  return {};
}

}  // namespace lapidary
