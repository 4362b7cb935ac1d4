// device.h: what the runtime needs of any device: memory, and the execution of planned calls.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/status.h"
#include "ops/contract.h"

namespace lapidary {

struct IsaInfo {
  std::string name;
  bool compiled = false;
  bool supported = false;
  bool active = false;  // part of this device's overlay
  std::string reason;   // why it is not supported
};

struct DeviceInfo {
  std::string kind;  // "cpu", "cuda:0"
  std::string name;  // the processor's own name
  std::string isa;   // the highest active one; of a GPU the family of its kernels
  std::vector<IsaInfo> isas;
  std::vector<std::pair<std::string, std::string>> kernels;  // op name → ISA that provides it
  std::vector<std::pair<std::string, std::string>> notes;    // measurements made at opening, e.g. the AMX self-test
  int threads = 1;                                           // of a GPU: its multiprocessors
  int64_t memory_limit = 0;                                  // bytes that this process may use
};

struct MemoryStats {
  int64_t bytes = 0;  // held by live buffers
  int64_t buffers = 0;
  int64_t cached = 0;  // kept for reuse
};

// A call whose kernel is resolved. The device owns the kernel; the caller keeps the call and its memory alive.
struct Step {
  const Call* call = nullptr;
  const void* kernel = nullptr;
};

// Memory of a captured program whose address is known only at each replay.
struct ReplayBinding {
  int64_t bytes = 0;
  enum Use : uint8_t { read, mutated, written } use = read;  // an input, one that calls write into, an output
};

// What a device keeps of calls that are executed again and again (a CUDA graph). One thread at a time.
class Replay {
 public:
  virtual ~Replay() = default;
  // Replaces addresses of bindings by those that the calls shall use; the device copies between the two.
  virtual void place(std::vector<unsigned char*>& bindings) = 0;
};

// Where an execution failed and why.
struct ExecutionError {
  Code code = Code::kOk;
  size_t step = 0;
  std::string message;
};

// How far a transfer got, from its beginning without gaps.
struct FileTransfer {
  int64_t bytes = 0;
  int error = 0;  // errno; 0 where the file merely ended
};

class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceTraits& traits() const = 0;
  virtual DeviceInfo info() const = 0;
  virtual MemoryStats memory() const = 0;

  // Fresh memory, contents undefined. Any thread.
  virtual Status allocate(int64_t bytes, BufferRef& out) = 0;

  // Resolves the call's kernel. Fails where no ISA of this device provides one.
  virtual Status resolve(const Call& call, Step& step) const = 0;

  // Prepares a thread that will call execute() (permissions that are per thread).
  virtual void start_thread() const {}

  // Runs the steps in order and returns when they are done; stops at the first one that fails, and between two of them,
  // with ERR_DISPOSED, once `stop` is set. Called from stream threads, several at a time.
  virtual bool execute(const Step* steps, size_t count, const std::atomic<bool>& stop, ExecutionError& failure) = 0;

  // For a captured program. Null: this device executes it as it is.
  virtual std::unique_ptr<Replay> make_replay(const std::vector<ReplayBinding>&) { return nullptr; }
  // As execute(). The calls are the same each time but for addresses, which depend alone on what place() made of `bindings`.
  virtual bool replay(Replay&, const std::vector<unsigned char*>& bindings, const Step* steps, size_t count,
                      const std::atomic<bool>& stop, ExecutionError& failure) {
    (void)bindings;
    return execute(steps, count, stop, failure);
  }

  // A mapped file as this device's calls read it: the mapping itself, or memory that it is copied to at its first use.
  virtual Status import_file(BufferRef file, BufferRef& out) {
    out = std::move(file);
    return {};
  }

  // Copies between host memory and a buffer's memory; on the calling (stream) thread.
  virtual void copy_in(unsigned char* device, const void* host, size_t bytes) = 0;
  virtual void fill_zero(unsigned char* device, size_t bytes) = 0;
  virtual void copy_out(void* host, const unsigned char* device, size_t bytes) = 0;

  // Between a file and a buffer's memory; on the calling (stream) thread, with the help of the device's own. They end
  // early where the file does, or where the system refuses.
  virtual FileTransfer read_file(unsigned char* device, int descriptor, int64_t offset, int64_t bytes) = 0;
  virtual FileTransfer write_file(const unsigned char* device, int descriptor, int64_t offset, int64_t bytes) = 0;

  // A defect that was noticed outside an execution (a guard region overwritten). Empty: none. Clears it.
  virtual std::string take_defect() = 0;
};

struct DeviceOptions {
  std::string kind = "cpu";  // cpu, cuda, cuda:1
  int threads = 0;           // 0: the physical cores this process may use
  std::string isa;           // empty: the best supported one
  bool guard =
      false;  // guard regions around every buffer, checked when it is released; fresh memory is filled with NaN
  bool unverified = false;  // take a GPU of an architecture without a recorded acceptance run
};

// A GPU that could be opened, or why not.
struct GpuListing {
  std::string kind;  // what DeviceOptions takes; "cuda" alone where there is none
  std::string name;
  std::string driver;
  std::string compute_capability;
  int64_t memory = 0;
  std::string reason;  // empty: it opens as it is
};

// Opens the device of options.kind. Blocking. Any thread.
Status open_device(const DeviceOptions& options, std::shared_ptr<Device>& out);

// Opens the CPU. Blocking: the AMX self-test alone takes 50 ms. Any thread.
Status open_cpu_device(const DeviceOptions& options, std::shared_ptr<Device>& out);

// What this build and machine offer, without opening anything.
std::vector<IsaInfo> list_isas();
std::vector<GpuListing> list_gpus();

}  // namespace lapidary
