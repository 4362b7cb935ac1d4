#include "core/mapped_file.h"

#include <cerrno>
#include <cstring>

#include "core/open_file.h"
#include "core/system.h"

namespace lapidary {
namespace {

class MappedFile final : public Buffer {
 public:
  MappedFile(std::shared_ptr<OpenFile> file, const FileMapping& mapping, int64_t bytes, int64_t end)
      : Buffer(mapping.data, bytes), file_(std::move(file)), mapping_(mapping), end_(end) {}
  ~MappedFile() override {
    if (mapping_.base) unmap_file_region(mapping_);
  }
  bool read_only() const override { return true; }
  // Reading a mapped page past the end of a file that shrank raises SIGBUS, which would end the host process. The
  // window between this check and the read remains; the file stays open so that replacing it on disk is harmless.
  bool readable() const override { return file_->size() >= end_; }
  void release_pages() const override {
    if (mapping_.base) release_file_region(mapping_);
  }

 private:
  std::shared_ptr<OpenFile> file_;
  FileMapping mapping_;
  int64_t end_;
};

}  // namespace

Status map_file(const std::string& path, int64_t offset, int64_t bytes, BufferRef& out) {
  std::shared_ptr<OpenFile> file;
  LAPIDARY_RETURN_IF_ERROR(open_file(path, offset, bytes, "map", file));
  FileMapping mapping;
  static unsigned char nothing;  // no system maps zero bytes
  mapping.data = &nothing;
  if (bytes > 0 && !map_file_region(file->descriptor(), offset, size_t(bytes), mapping)) {
    return error(Code::kFile, "map: cannot map %s: %s", path.c_str(), strerror(errno));
  }
  out = std::make_shared<MappedFile>(std::move(file), mapping, bytes, offset + bytes);
  return {};
}

}  // namespace lapidary
