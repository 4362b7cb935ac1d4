#include "runtime/file_transfer.h"

#include <cerrno>
#include <cstring>

#include "core/system.h"

namespace lapidary {
namespace {

// A piece between two looks at whether the stream closes; other streams of the device get their turn as often.
constexpr int64_t kPiece = int64_t(64) << 20;

struct LoadItem final : WorkItem {
  void run(Stream& stream) override {
    const int64_t bytes = storage_bytes(tensor.view);
    for (int64_t done = 0; done < bytes && !stream.failed() && !stream.closed();) {
      const int64_t piece = bytes - done < kPiece ? bytes - done : kPiece;
      const FileTransfer result =
          stream.device().read_file(tensor.view.data + done, file->descriptor(), offset + done, piece);
      done += result.bytes;
      if (result.bytes == piece) continue;
      const std::string reason = result.error ? strerror(result.error) : "it has become shorter";
      stream.fail(Code::kFile, "Tensor.load: " + file->path() + ": expected " + std::to_string(bytes) +
                                   " bytes at offset " + std::to_string(offset) + ", got " + std::to_string(done) +
                                   " (" + reason + ")");
    }
  }
  BoundTensor tensor;
  std::shared_ptr<OpenFile> file;
  int64_t offset = 0;
};

struct SaveItem final : WorkItem {
  void run(Stream& stream) override {
    if (!stream.failed() && !tensor.buffer->readable())
      stream.fail(Code::kFile, "Tensor.save: the mapped file of the tensor has become shorter");
    if (!stream.failed()) write(stream);
    tensor.buffer.reset();
    stream.complete(std::move(completion));
  }
  void cancel(Stream& stream) override { stream.complete_disposed(std::move(completion)); }

  void write(Stream& stream) {
    const int64_t bytes = storage_bytes(tensor.view);
    const int descriptor = open_for_writing(path.c_str());
    if (descriptor < 0) return refuse("cannot open " + path + ": " + strerror(errno));
    int64_t done = 0;
    int code = 0;
    while (done < bytes && code == 0) {
      if (stream.closed()) {
        close_file(descriptor);
        completion->code = Code::kDisposed;
        completion->message = "Tensor.save: the stream was disposed before all was written";
        return;
      }
      const int64_t piece = bytes - done < kPiece ? bytes - done : kPiece;
      const FileTransfer result = stream.device().write_file(tensor.view.data + done, descriptor, offset + done, piece);
      done += result.bytes;
      code = result.error;
    }
    if (close_file(descriptor) != 0 && code == 0) code = errno;  // a network's disk is full only now
    if (code != 0) {
      return refuse(path + ": expected to write " + std::to_string(bytes) + " bytes at offset " +
                    std::to_string(offset) + ", wrote " + std::to_string(done) + ": " + strerror(code));
    }
    completion->byte_count = size_t(bytes);
  }
  void refuse(std::string message) {
    completion->code = Code::kFile;
    completion->message = "Tensor.save: " + message;
  }

  BoundTensor tensor;
  std::string path;
  int64_t offset = 0;
  std::unique_ptr<Completion> completion;
};

}  // namespace

void push_load(Stream& stream, const BoundTensor& tensor, std::shared_ptr<OpenFile> file, int64_t offset) {
  auto item = std::make_unique<LoadItem>();
  item->tensor = tensor;
  item->file = std::move(file);
  item->offset = offset;
  stream.push(std::move(item));
}

void push_save(Stream& stream, const BoundTensor& tensor, std::string path, int64_t offset,
               std::unique_ptr<Completion> completion) {
  auto item = std::make_unique<SaveItem>();
  item->tensor = tensor;
  item->path = std::move(path);
  item->offset = offset;
  item->completion = std::move(completion);
  stream.push(std::move(item));
}

}  // namespace lapidary
