// mapped_file.h: a read-only region of a file as a buffer: weights go from the page cache to the packed layout without
// a copy.
#pragma once
#include <string>

#include "core/buffer.h"
#include "core/status.h"

namespace lapidary {

// Maps `bytes` bytes of `path` from byte `offset`. Fails with ERR_FILE where the file is absent, not a regular file, or
// shorter than offset + bytes. The offset need not be a page boundary.
Status map_file(const std::string& path, int64_t offset, int64_t bytes, BufferRef& out);

}  // namespace lapidary
