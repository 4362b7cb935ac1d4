#include "core/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/open_file.h"

namespace lapidary {
namespace {

class MappedFile final : public Buffer {
 public:
  MappedFile(std::shared_ptr<OpenFile> file, void* mapping, size_t mapping_bytes, unsigned char* data, int64_t bytes,
             int64_t end)
      : Buffer(data, bytes), file_(std::move(file)), mapping_(mapping), mapping_bytes_(mapping_bytes), end_(end) {}
  ~MappedFile() override { munmap(mapping_, mapping_bytes_); }
  bool read_only() const override { return true; }
  // Reading a mapped page past the end of a file that shrank raises SIGBUS, which would end the host process. The
  // window between this check and the read remains; the file stays open so that replacing it on disk is harmless.
  bool readable() const override { return file_->size() >= end_; }
  void release_pages() const override { madvise(mapping_, mapping_bytes_, MADV_DONTNEED); }

 private:
  std::shared_ptr<OpenFile> file_;
  void* mapping_;
  size_t mapping_bytes_;
  int64_t end_;
};

}  // namespace

Status map_file(const std::string& path, int64_t offset, int64_t bytes, BufferRef& out) {
  std::shared_ptr<OpenFile> file;
  LAPIDARY_RETURN_IF_ERROR(open_file(path, offset, bytes, "map", file));
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t start = offset / page * page;
  const size_t mapping_bytes = size_t(offset - start + (bytes > 0 ? bytes : 1));
  void* mapping = mmap(nullptr, mapping_bytes, PROT_READ, MAP_PRIVATE, file->descriptor(), start);
  if (mapping == MAP_FAILED) {
    return error(Code::kFile, "map: cannot map %s: %s", path.c_str(), strerror(errno));
  }
  out = std::make_shared<MappedFile>(std::move(file), mapping, mapping_bytes,
                                     static_cast<unsigned char*>(mapping) + (offset - start), bytes, offset + bytes);
  return {};
}

}  // namespace lapidary
