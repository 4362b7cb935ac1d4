// file_transfer.h: tensors from files and to files, in order with the calls around them and without the JS heap.
#pragma once
#include "core/open_file.h"
#include "runtime/stream.h"

namespace lapidary {

// Fills the tensor's memory (contiguous, or packed) with the file's bytes from `offset` on. A file that has become
// shorter, or cannot be read, is the stream's sticky error.
void push_load(Stream& stream, const BoundTensor& tensor, std::shared_ptr<OpenFile> file, int64_t offset);

// Writes the tensor's bytes (contiguous, or packed) to the file from `offset` on, creating the file where it is absent
// and extending it where it is shorter. Completes with byte_count, the bytes written; what the system refuses is the
// completion's error alone.
void push_save(Stream& stream, const BoundTensor& tensor, std::string path, int64_t offset,
               std::unique_ptr<Completion> completion);

}  // namespace lapidary
