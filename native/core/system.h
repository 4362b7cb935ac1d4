// system.h: what differs between operating systems, and nothing else: files read and written at an offset, pages of memory,
// the processors a process may use. system_posix.cc is Linux and macOS, system_win32.cc Windows; no other file below the
// bridge includes a header of one system (but backends/cpu/amx.cc, whose subject is Linux's).
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace lapidary {

// ── files ──
// Descriptors are the C library's, on Windows too; paths are UTF-8. Functions that return −1 leave the reason in errno.

// Neither waits for the other end of a pipe, nor is inherited by child processes; the file may be renamed, replaced or
// removed meanwhile. open_for_writing creates the file where it is absent and keeps what it holds.
int open_for_reading(const char* path);
int open_for_writing(const char* path);
int close_file(int descriptor);
// Bytes transferred, which may be fewer than asked for; 0 at the end of the file.
int64_t read_at(int descriptor, void* to, size_t bytes, int64_t offset);
int64_t write_at(int descriptor, const void* from, size_t bytes, int64_t offset);
bool is_regular_file(int descriptor);
int64_t file_size(int descriptor);
// Does `path` still name the file that is open as `descriptor`?
bool names_open_file(const char* path, int descriptor);

// `bytes` > 0 bytes of a file, read-only; `data` is its byte at `offset`, which need not be a page boundary.
struct FileMapping {
  void* base = nullptr;
  size_t base_bytes = 0;
  unsigned char* data = nullptr;
};
// False and errno where the system refuses.
bool map_file_region(int descriptor, int64_t offset, size_t bytes, FileMapping& out);
void unmap_file_region(const FileMapping& mapping);
// Pages that were read no longer count as the process's memory; they come back when they are next read.
void release_file_region(const FileMapping& mapping);

// ── memory ──

size_t page_bytes();
// Zeroed pages at an address that is a multiple of 2 MiB where the system has pages of that size, and asks for them; null
// where there are none.
unsigned char* map_pages(size_t bytes);
// Gives back what map_pages gave, or a part of it where `unmaps_parts()`.
void unmap_pages(unsigned char* base, size_t bytes);
bool unmaps_parts();
// Gives the memory of whole pages back, which then read as zeros; false, and nothing done, where the system cannot.
bool discard_pages(unsigned char* base, size_t bytes);
// `bytes` is a multiple of `alignment`. Null where there is none.
void* allocate_aligned(size_t alignment, size_t bytes);
void free_aligned(void* memory);
// Bytes of memory this process may use: the machine's, or the container's limit.
int64_t memory_limit();

// ── libraries ──

// `lib<name>.so`, as this system spells it.
std::string library_file_name(const char* name);
// The folder of the binary that holds `code`, with a separator at the end; empty where the system cannot say.
std::string folder_of(const void* code);
// Opens a library whose names are for find_symbol alone, and never closes it; null and the system's `reason` where it
// does not open.
void* open_library(const std::string& path, std::string& reason);
void* find_symbol(void* library, const char* name);

// ── processors and threads ──

// Threads that can run at once on cores of their own: the cores the process may use without hyperthread siblings, at most
// the container's quota (a throttled thread stops for up to 100 ms while the others burn the quota spinning).
int usable_cores();
std::string processor_name();
// In the calling thread, a write beyond the process's limit of file sizes is then an error, not the end of the process.
void ignore_file_size_signal();

}  // namespace lapidary
