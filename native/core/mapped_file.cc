#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace lapidary {
namespace {

class MappedFile final : public Buffer {
 public:
  MappedFile(int file, void* mapping, size_t mapping_bytes, unsigned char* data, int64_t bytes, int64_t end)
      : Buffer(data, bytes), file_(file), mapping_(mapping), mapping_bytes_(mapping_bytes), end_(end) {}
  ~MappedFile() override {
    munmap(mapping_, mapping_bytes_);
    close(file_);
  }
  bool read_only() const override { return true; }
  // Reading a mapped page past the end of a file that shrank raises SIGBUS, which would end the host process. The
  // window between this check and the read remains; the file stays open so that replacing it on disk is harmless.
  bool readable() const override {
    struct stat now;
    return fstat(file_, &now) == 0 && now.st_size >= end_;
  }

 private:
  int file_;
  void* mapping_;
  size_t mapping_bytes_;
  int64_t end_;
};

}  // namespace

Status map_file(const std::string& path, int64_t offset, int64_t bytes, BufferRef& out) {
  if (offset < 0 || bytes < 0) {
    return error(Code::kInvalidArgument, "map: offset and length must not be negative, got %lld and %lld",
                 (long long)offset, (long long)bytes);
  }
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return error(Code::kFile, "map: cannot open %s: %s", path.c_str(), strerror(errno));
  struct stat stats;
  if (fstat(file, &stats) != 0 || !S_ISREG(stats.st_mode)) {
    close(file);
    return error(Code::kFile, "map: %s is not a regular file", path.c_str());
  }
  if (bytes > stats.st_size || offset > stats.st_size - bytes) {
    close(file);
    return error(Code::kFile, "map: %s has %lld bytes, expected at least %lld (offset %lld + %lld)", path.c_str(),
                 (long long)stats.st_size, (long long)(offset + bytes), (long long)offset, (long long)bytes);
  }
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t start = offset / page * page;
  const size_t mapping_bytes = size_t(offset - start + (bytes > 0 ? bytes : 1));
  void* mapping = mmap(nullptr, mapping_bytes, PROT_READ, MAP_PRIVATE, file, start);
  if (mapping == MAP_FAILED) {
    const int code = errno;
    close(file);
    return error(Code::kFile, "map: cannot map %s: %s", path.c_str(), strerror(code));
  }
  out = std::make_shared<MappedFile>(file, mapping, mapping_bytes,
                                     static_cast<unsigned char*>(mapping) + (offset - start), bytes, offset + bytes);
  return {};
}

}  // namespace lapidary
