#include "core/open_file.h"

#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "core/system.h"

namespace lapidary {
namespace {

// Of files that are in use, by path.
std::mutex open_mutex;
std::map<std::string, std::weak_ptr<OpenFile>>& open_files() {
  static auto* files = new std::map<std::string, std::weak_ptr<OpenFile>>;  // outlives whatever runs at exit
  return *files;
}

// The descriptor in use for this path, unless another file has taken its name.
std::shared_ptr<OpenFile> find_open(const std::string& path) {
  const auto found = open_files().find(path);
  if (found == open_files().end()) return nullptr;
  std::shared_ptr<OpenFile> file = found->second.lock();
  return file && names_open_file(path.c_str(), file->descriptor()) ? file : nullptr;
}

}  // namespace

OpenFile::~OpenFile() { close_file(descriptor_); }

int64_t OpenFile::size() const { return file_size(descriptor_); }

Status open_file(const std::string& path, int64_t offset, int64_t bytes, const char* what,
                 std::shared_ptr<OpenFile>& out) {
  if (offset < 0 || bytes < 0) {
    return error(Code::kInvalidArgument, "%s: offset and length must not be negative, got %lld and %lld", what,
                 (long long)offset, (long long)bytes);
  }
  std::lock_guard lock(open_mutex);
  std::shared_ptr<OpenFile> file = find_open(path);
  if (!file) {
    const int descriptor = open_for_reading(path.c_str());
    if (descriptor < 0) return error(Code::kFile, "%s: cannot open %s: %s", what, path.c_str(), strerror(errno));
    file = std::make_shared<OpenFile>(descriptor, path);
    if (!is_regular_file(descriptor)) return error(Code::kFile, "%s: %s is not a regular file", what, path.c_str());
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
