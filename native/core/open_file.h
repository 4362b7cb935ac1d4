// open_file.h: a file that is open for reading, shared by everything that reads it: a checkpoint of a thousand tensors
// takes one descriptor, not a thousand.
#pragma once
#include <memory>
#include <string>

#include "core/status.h"

namespace lapidary {

class OpenFile {
 public:
  OpenFile(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }
  // Its size now; −1 where the system cannot say.
  int64_t size() const;

 private:
  int descriptor_;
  std::string path_;
};

// Opens a regular file of at least offset + bytes bytes. Fails with ERR_FILE, and with ERR_INVALID_ARGUMENT for
// negative numbers; `what` names the operation in messages. The file stays the one it was when another takes its name.
// Any thread.
Status open_file(const std::string& path, int64_t offset, int64_t bytes, const char* what,
                 std::shared_ptr<OpenFile>& out);

}  // namespace lapidary
