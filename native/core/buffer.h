// buffer.h: the owner of a tensor's memory. Tensors, calls in flight and programs share it; the last one to let go
// releases it, on whatever thread that is.
#pragma once
#include <cstdint>
#include <memory>

namespace lapidary {

class Buffer {
 public:
  Buffer(unsigned char* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  virtual ~Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  unsigned char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // No op may write into it (a mapped file).
  virtual bool read_only() const { return false; }
  // Whether the memory may be read now; a mapped file that shrank says no. Called before each use on the stream's
  // thread.
  virtual bool readable() const { return true; }
  // Lets go of pages that come back when they are next read (a mapped file's). Any thread, also while they are read.
  virtual void release_pages() const {}
  // Stands for memory that a program will provide (runtime/program.h); data() is then a placeholder, never
  // dereferenced.
  virtual bool planned() const { return false; }

 private:
  unsigned char* data_;
  int64_t bytes_;
};

using BufferRef = std::shared_ptr<Buffer>;

}  // namespace lapidary
