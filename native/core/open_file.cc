#include "core/open_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

namespace lapidary {
namespace {

// Of files that are in use, by path.
std::mutex open_mutex;
std::map<std::string, std::weak_ptr<OpenFile>>& open_files() {
  static auto* files = new std::map<std::string, std::weak_ptr<OpenFile>>;  // outlives whatever runs at exit
  return *files;
}

bool same_file(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

// The descriptor in use for this path, unless another file has taken its name.
std::shared_ptr<OpenFile> find_open(const std::string& path) {
  const auto found = open_files().find(path);
  if (found == open_files().end()) return nullptr;
  std::shared_ptr<OpenFile> file = found->second.lock();
  struct stat held, named;
  if (file && fstat(file->descriptor(), &held) == 0 && stat(path.c_str(), &named) == 0 && same_file(held, named)) {
    return file;
  }
  return nullptr;
}

}  // namespace

OpenFile::~OpenFile() { close(descriptor_); }

int64_t OpenFile::size() const {
  struct stat stats;
  return fstat(descriptor_, &stats) == 0 ? int64_t(stats.st_size) : -1;
}

Status open_file(const std::string& path, int64_t offset, int64_t bytes, const char* what,
                 std::shared_ptr<OpenFile>& out) {
  if (offset < 0 || bytes < 0) {
    return error(Code::kInvalidArgument, "%s: offset and length must not be negative, got %lld and %lld", what,
                 (long long)offset, (long long)bytes);
  }
  std::lock_guard lock(open_mutex);
  std::shared_ptr<OpenFile> file = find_open(path);
  if (!file) {
    int descriptor;
    do {
      descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return error(Code::kFile, "%s: cannot open %s: %s", what, path.c_str(), strerror(errno));
    file = std::make_shared<OpenFile>(descriptor, path);
    struct stat stats;
    if (fstat(descriptor, &stats) != 0 || !S_ISREG(stats.st_mode)) {
      return error(Code::kFile, "%s: %s is not a regular file", what, path.c_str());
    }
    std::erase_if(open_files(), [](const auto& entry) { return entry.second.expired(); });
    open_files()[path] = file;
  }
  const int64_t size = file->size();
  if (bytes > size || offset > size - bytes) {
    return error(Code::kFile, "%s: %s has %lld bytes, expected at least %lld (offset %lld + %lld)", what, path.c_str(),
                 (long long)size, (long long)(offset + bytes), (long long)offset, (long long)bytes);
  }
  out = std::move(file);
  return {};
}

}  // namespace lapidary
