// system_posix.cc: Linux and macOS.
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "core/system.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace lapidary {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

int open_retrying(const char* path, int flags) {
  int descriptor;
  do {
    descriptor = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0666);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

int open_for_reading(const char* path) { return open_retrying(path, O_RDONLY); }
int open_for_writing(const char* path) { return open_retrying(path, O_WRONLY | O_CREAT); }
int close_file(int descriptor) { return close(descriptor) != 0 && errno != EINTR ? -1 : 0; }

int64_t read_at(int descriptor, void* to, size_t bytes, int64_t offset) {
  ssize_t count;
  do {
    count = pread(descriptor, to, bytes, off_t(offset));
  } while (count < 0 && errno == EINTR);
  return count;
}

int64_t write_at(int descriptor, const void* from, size_t bytes, int64_t offset) {
  ssize_t count;
  do {
    count = pwrite(descriptor, from, bytes, off_t(offset));
  } while (count < 0 && errno == EINTR);
  return count;
}

bool is_regular_file(int descriptor) {
  struct stat stats;
  return fstat(descriptor, &stats) == 0 && S_ISREG(stats.st_mode);
}

int64_t file_size(int descriptor) {
  struct stat stats;
  return fstat(descriptor, &stats) == 0 ? int64_t(stats.st_size) : -1;
}

bool names_open_file(const char* path, int descriptor) {
  struct stat held, named;
  return fstat(descriptor, &held) == 0 && stat(path, &named) == 0 && held.st_dev == named.st_dev &&
         held.st_ino == named.st_ino;
}

bool map_file_region(int descriptor, int64_t offset, size_t bytes, FileMapping& out) {
  const auto page = int64_t(page_bytes());
  const int64_t start = offset / page * page;
  out.base_bytes = size_t(offset - start) + bytes;
  out.base = mmap(nullptr, out.base_bytes, PROT_READ, MAP_PRIVATE, descriptor, off_t(start));
  if (out.base == MAP_FAILED) return false;
  out.data = static_cast<unsigned char*>(out.base) + (offset - start);
  return true;
}

void unmap_file_region(const FileMapping& mapping) { munmap(mapping.base, mapping.base_bytes); }
void release_file_region(const FileMapping& mapping) { madvise(mapping.base, mapping.base_bytes, MADV_DONTNEED); }

size_t page_bytes() {
  static const auto bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

unsigned char* map_pages(size_t bytes) {
  const size_t padded = bytes + kHugePage;
  void* mapping = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return nullptr;
  auto* base = static_cast<unsigned char*>(mapping);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
  if (head) munmap(base, head);
  if (padded - head > bytes) munmap(base + head + bytes, padded - head - bytes);
#if defined(MADV_HUGEPAGE)
  madvise(base + head, bytes, MADV_HUGEPAGE);
#endif
  return base + head;
}

void unmap_pages(unsigned char* base, size_t bytes) { munmap(base, bytes); }
bool unmaps_parts() { return true; }

bool discard_pages(unsigned char* base, size_t bytes) {
#if defined(__linux__)
  return madvise(base, bytes, MADV_DONTNEED) == 0;
#else
  // Elsewhere MADV_DONTNEED may keep the contents; a fresh mapping in the same place does not.
  return mmap(base, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) !=
         MAP_FAILED;
#endif
}

std::string library_file_name(const char* name) { return std::string("lib") + name + ".so"; }
std::string folder_of(const void* code) {
  Dl_info place;
  if (dladdr(code, &place) == 0 || !place.dli_fname) return "";
  const char* slash = strrchr(place.dli_fname, '/');
  return slash ? std::string(place.dli_fname, size_t(slash - place.dli_fname) + 1) : "";
}

void* open_library(const std::string& path, std::string& reason) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* text = dlerror();
    reason = text ? text : path;
  }
  return library;
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

void* allocate_aligned(size_t alignment, size_t bytes) { return aligned_alloc(alignment, bytes); }
void free_aligned(void* memory) { free(memory); }

#if defined(__APPLE__)

int64_t memory_limit() {
  int64_t bytes = 0;
  size_t length = sizeof bytes;
  return sysctlbyname("hw.memsize", &bytes, &length, nullptr, 0) == 0 ? bytes : 0;
}

// The performance cores: a team whose threads meet at barriers is as fast as its slowest.
int usable_cores() {
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
    int cores = 0;
    size_t length = sizeof cores;
    if (sysctlbyname(name, &cores, &length, nullptr, 0) == 0 && cores > 0) return cores;
  }
  return 1;
}

std::string processor_name() {
  char name[256] = "";
  size_t length = sizeof name - 1;
  if (sysctlbyname("machdep.cpu.brand_string", name, &length, nullptr, 0) != 0 || !*name) return "unknown processor";
  return name;
}

#else

namespace {

int64_t read_limit(const char* path) {
  FILE* file = fopen(path, "re");
  if (!file) return 0;
  long long value = 0;
  const int fields = fscanf(file, "%lld", &value);
  fclose(file);
  return fields == 1 && value > 0 ? value : 0;
}

}  // namespace

int64_t memory_limit() {
  int64_t limit = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(page_bytes());
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    const int64_t container = read_limit(path);
    if (container > 0 && container < limit) limit = container;
  }
  return limit;
}

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    char path[96], siblings[128] = "";
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    if (FILE* file = fopen(path, "re")) {
      if (!fgets(siblings, sizeof siblings, file)) siblings[0] = 0;
      fclose(file);
    }
    cores.insert(siblings[0] ? siblings : path);
  }
  int threads = std::max(1, int(cores.size()));
  if (FILE* file = fopen("/sys/fs/cgroup/cpu.max", "re")) {
    long long quota = 0, period = 0;
    if (fscanf(file, "%lld %lld", &quota, &period) == 2 && period > 0) {
      threads = std::max(1, std::min<int>(threads, int(quota / period)));
    }
    fclose(file);
  }
  return threads;
}

std::string processor_name() {
  std::string name = "unknown processor";
  FILE* file = fopen("/proc/cpuinfo", "re");
  if (!file) return name;
  char line[256];
  while (fgets(line, sizeof line, file)) {
    if (strncmp(line, "model name", 10) != 0) continue;
    if (const char* colon = strchr(line, ':')) name = std::string(colon + 2, strcspn(colon + 2, "\n"));
    break;
  }
  fclose(file);
  return name;
}

#endif

void ignore_file_size_signal() {
  sigset_t too_large;
  sigemptyset(&too_large);
  sigaddset(&too_large, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &too_large, nullptr);
}

}  // namespace lapidary
