// system.cc: core/system.h on the system that it is compiled for: what callers rely on, and what they would not notice until it
// loses data.
#include "core/system.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

using namespace lapidary;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "failed: %s (errno %d)\n", what, errno);
}

// With a letter outside ASCII, because Windows' own functions for narrow strings would take another file.
const std::string kPath = "system-test-\xC3\xA9.tmp";
const std::string kOther = "system-test-other.tmp";

void files() {
  expect(open_for_reading("no-such-folder/file") < 0 && errno == ENOENT, "an absent file is ENOENT");
  const int folder = open_for_reading(".");
  expect(folder < 0 || !is_regular_file(folder), "a folder is no regular file");
  if (folder >= 0) close_file(folder);

  const int out = open_for_writing(kPath.c_str());
  expect(out >= 0, "a file is created");
  // \r, \n and 0x1A: what a file in text mode would change or end at.
  const char text[] = "a\r\nb\x1Az";
  expect(write_at(out, text, 6, 0) == 6, "bytes are written");
  expect(write_at(out, "far", 3, 100000) == 3, "and beyond the end");
  expect(close_file(out) == 0, "and closed");

  const int in = open_for_reading(kPath.c_str());
  char read[8] = {};
  expect(is_regular_file(in) && file_size(in) == 100003, "it is as long as what was written last");
  expect(read_at(in, read, 6, 0) == 6 && memcmp(read, text, 6) == 0, "the same bytes come back");
  expect(read_at(in, read, 8, 99999) == 4 && memcmp(read, "\0far", 4) == 0, "a hole is zeros, a read ends at the end");
  expect(read_at(in, read, 8, 200000) == 0, "behind the end is nothing");
  const int again = open_for_writing(kPath.c_str());
  expect(file_size(again) == 100003, "opening for writing keeps what is there");
  close_file(again);

  FileMapping mapping;
  expect(map_file_region(in, 99999, 4, mapping), "a region is mapped from a byte inside a page");
  expect(mapping.data && memcmp(mapping.data, "\0far", 4) == 0, "and holds the file's bytes");
  expect(names_open_file(kPath.c_str(), in), "the path names the open file");
  // A checkpoint is replaced while it is in use: by renaming.
  close_file(open_for_writing(kOther.c_str()));
  expect(!names_open_file(kOther.c_str(), in), "another file is another file");
  unmap_file_region(mapping);
  close_file(in);
}

void memory() {
  const size_t bytes = size_t(8) << 20;
  unsigned char* pages = map_pages(bytes);
  expect(pages && pages[0] == 0 && pages[bytes - 1] == 0, "pages are zeros");
  memset(pages, 1, bytes);
  if (discard_pages(pages + page_bytes(), 4 * page_bytes())) {
    expect(pages[page_bytes()] == 0 && pages[5 * page_bytes() - 1] == 0, "discarded pages are zeros");
  }
  expect(pages[page_bytes() - 1] == 1 && pages[5 * page_bytes()] == 1, "and their neighbours are not");
  if (unmaps_parts()) {
    unmap_pages(pages, bytes / 2);
    expect(pages[bytes - 1] == 1, "half of them can go");
    unmap_pages(pages + bytes / 2, bytes / 2);
  } else {
    unmap_pages(pages, bytes);
  }
  void* block = allocate_aligned(128, 384);
  expect(block && reinterpret_cast<uintptr_t>(block) % 128 == 0, "a block is aligned");
  free_aligned(block);
  expect(memory_limit() > (int64_t(64) << 20), "the machine has memory");
}

void libraries() {
  const std::string folder = folder_of(reinterpret_cast<const void*>(&libraries));
  expect(!folder.empty() && (folder.back() == '/' || folder.back() == '\\'), "this program's folder is known");
  std::string reason;
  expect(!open_library(folder + "no-such-library", reason) && !reason.empty(), "an absent library has a reason");
#if defined(_WIN32)
  void* library = open_library("C:\\windows\\system32\\kernel32.dll", reason);
  expect(library && find_symbol(library, "GetTickCount"), "a symbol is found");
#else
  void* library = open_library("libm.so.6", reason);
  expect(!library || find_symbol(library, "cos"), "a symbol is found");  // macOS and musl have no such name
#endif
  expect(!library || !find_symbol(library, "no_such_symbol"), "and one that is absent is not");
}

}  // namespace

int main() {
  files();
  memory();
  libraries();
  expect(usable_cores() >= 1, "there is a processor");
  expect(!processor_name().empty(), "which has a name");
  remove(kOther.c_str());
  remove(kPath.c_str());
  if (failures == 0) printf("files, memory, libraries, processors\n");
  return failures == 0 ? 0 : 1;
}
