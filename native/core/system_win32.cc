// system_win32.cc: Windows 10 and later. Compiled with MinGW-w64, whose C++ library and winpthreads are linked in.
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
// After windows.h.
#include <fcntl.h>
#include <io.h>
#include <malloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "core/system.h"

namespace lapidary {
namespace {

constexpr DWORD kMostBytes = DWORD(1) << 30;  // of one read or write, whose count has 32 bits

HANDLE handle_of(int descriptor) { return reinterpret_cast<HANDLE>(_get_osfhandle(descriptor)); }

std::wstring wide(const char* utf8) {
  const int units = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, utf8, -1, nullptr, 0);
  if (units <= 0) return {};
  std::wstring text(size_t(units), L'\0');
  MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, utf8, -1, text.data(), units);
  text.resize(size_t(units) - 1);
  return text;
}

// What strerror has words for.
int to_errno(DWORD code) {
  switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME:
    case ERROR_BAD_NETPATH: return ENOENT;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION:
    case ERROR_WRITE_PROTECT: return EACCES;
    case ERROR_TOO_MANY_OPEN_FILES: return EMFILE;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_OUTOFMEMORY:
    case ERROR_COMMITMENT_LIMIT: return ENOMEM;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL: return ENOSPC;
    case ERROR_FILE_TOO_LARGE: return EFBIG;
    case ERROR_INVALID_PARAMETER: return EINVAL;
    default: return EIO;
  }
}

int fail_with_last_error() {
  errno = to_errno(GetLastError());
  return -1;
}

// With every kind of sharing, so that others may rename, replace or remove the file meanwhile, as on other systems. A folder
// is opened too, where that needs a flag: is_regular_file tells.
int open_sharing(const char* path, DWORD access, DWORD disposition, int flags) {
  const std::wstring name = wide(path);
  if (name.empty()) {
    errno = ENOENT;
    return -1;
  }
  HANDLE file = CreateFileW(name.c_str(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                            disposition, FILE_ATTRIBUTE_NORMAL | FILE_FLAG_BACKUP_SEMANTICS, nullptr);
  if (file == INVALID_HANDLE_VALUE) return fail_with_last_error();
  const int descriptor = _open_osfhandle(reinterpret_cast<intptr_t>(file), flags | _O_BINARY | _O_NOINHERIT);
  if (descriptor < 0) CloseHandle(file);
  return descriptor;
}

OVERLAPPED at(int64_t offset) {
  OVERLAPPED position = {};
  position.Offset = DWORD(uint64_t(offset));
  position.OffsetHigh = DWORD(uint64_t(offset) >> 32);
  return position;
}

bool identity(HANDLE file, BY_HANDLE_FILE_INFORMATION& out) {
  return file != INVALID_HANDLE_VALUE && GetFileInformationByHandle(file, &out);
}

std::string narrow(const std::wstring& text) {
  const int bytes = WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), nullptr, 0, nullptr, nullptr);
  std::string utf8(size_t(std::max(0, bytes)), '\0');
  WideCharToMultiByte(CP_UTF8, 0, text.data(), int(text.size()), utf8.data(), bytes, nullptr, nullptr);
  return utf8;
}

}  // namespace

int open_for_reading(const char* path) { return open_sharing(path, GENERIC_READ, OPEN_EXISTING, _O_RDONLY); }
int open_for_writing(const char* path) { return open_sharing(path, GENERIC_WRITE, OPEN_ALWAYS, _O_WRONLY); }
int close_file(int descriptor) { return _close(descriptor); }

int64_t read_at(int descriptor, void* to, size_t bytes, int64_t offset) {
  OVERLAPPED position = at(offset);
  DWORD count = 0;
  if (!ReadFile(handle_of(descriptor), to, DWORD(std::min<size_t>(bytes, kMostBytes)), &count, &position)) {
    return GetLastError() == ERROR_HANDLE_EOF ? 0 : fail_with_last_error();
  }
  return count;
}

int64_t write_at(int descriptor, const void* from, size_t bytes, int64_t offset) {
  OVERLAPPED position = at(offset);
  DWORD count = 0;
  if (!WriteFile(handle_of(descriptor), from, DWORD(std::min<size_t>(bytes, kMostBytes)), &count, &position)) {
    return fail_with_last_error();
  }
  return count;
}

bool is_regular_file(int descriptor) {
  BY_HANDLE_FILE_INFORMATION information;
  return GetFileType(handle_of(descriptor)) == FILE_TYPE_DISK && identity(handle_of(descriptor), information) &&
         !(information.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY);
}

int64_t file_size(int descriptor) {
  LARGE_INTEGER size;
  return GetFileSizeEx(handle_of(descriptor), &size) ? int64_t(size.QuadPart) : -1;
}

bool names_open_file(const char* path, int descriptor) {
  BY_HANDLE_FILE_INFORMATION held, named;
  const int other = open_for_reading(path);
  if (other < 0) return false;
  const bool same = identity(handle_of(descriptor), held) && identity(handle_of(other), named) &&
                    held.dwVolumeSerialNumber == named.dwVolumeSerialNumber &&
                    held.nFileIndexHigh == named.nFileIndexHigh && held.nFileIndexLow == named.nFileIndexLow;
  close_file(other);
  return same;
}

bool map_file_region(int descriptor, int64_t offset, size_t bytes, FileMapping& out) {
  SYSTEM_INFO system;
  GetSystemInfo(&system);
  const auto step = int64_t(system.dwAllocationGranularity);
  const int64_t start = offset / step * step;
  HANDLE section = CreateFileMappingW(handle_of(descriptor), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (!section) return fail_with_last_error() == 0;
  out.base_bytes = size_t(offset - start) + bytes;
  out.base =
      MapViewOfFile(section, FILE_MAP_READ, DWORD(uint64_t(start) >> 32), DWORD(uint64_t(start)), out.base_bytes);
  if (!out.base) (void)fail_with_last_error();
  CloseHandle(section);  // the view keeps it
  if (!out.base) return false;
  out.data = static_cast<unsigned char*>(out.base) + (offset - start);
  return true;
}

void unmap_file_region(const FileMapping& mapping) { UnmapViewOfFile(mapping.base); }
// Of pages that are not locked, this takes them out of the working set.
void release_file_region(const FileMapping& mapping) { VirtualUnlock(mapping.base, mapping.base_bytes); }

size_t page_bytes() {
  SYSTEM_INFO system;
  GetSystemInfo(&system);
  return system.dwPageSize;
}

// Pages of 2 MiB need a privilege that a process rarely has, and cannot be paged: ordinary ones.
unsigned char* map_pages(size_t bytes) {
  return static_cast<unsigned char*>(VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
}
void unmap_pages(unsigned char* base, size_t) { VirtualFree(base, 0, MEM_RELEASE); }
bool unmaps_parts() { return false; }

// Decommitted pages would have to be committed again, which may fail when memory is short, and then the next write is a
// crash.
bool discard_pages(unsigned char*, size_t) { return false; }

std::string library_file_name(const char* name) { return std::string(name) + ".dll"; }
std::string folder_of(const void* code) {
  HMODULE module = nullptr;
  const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  if (!GetModuleHandleExW(flags, reinterpret_cast<LPCWSTR>(code), &module)) return "";
  std::wstring path(32768, L'\0');  // the longest that Windows has
  path.resize(GetModuleFileNameW(module, path.data(), DWORD(path.size())));
  return narrow(path.substr(0, path.find_last_of(L'\\') + 1));
}

void* open_library(const std::string& path, std::string& reason) {
  HMODULE library = LoadLibraryExW(wide(path.c_str()).c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
  if (!library) reason = path + ": Windows error " + std::to_string(GetLastError());
  return reinterpret_cast<void*>(library);
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

void* allocate_aligned(size_t alignment, size_t bytes) { return _aligned_malloc(bytes, alignment); }
void free_aligned(void* memory) { _aligned_free(memory); }

int64_t memory_limit() {
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof status;
  int64_t limit = GlobalMemoryStatusEx(&status) ? int64_t(status.ullTotalPhys) : 0;
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION job = {};  // a container's
  if (QueryInformationJobObject(nullptr, JobObjectExtendedLimitInformation, &job, sizeof job, nullptr)) {
    if (job.BasicLimitInformation.LimitFlags & JOB_OBJECT_LIMIT_JOB_MEMORY) {
      limit = std::min<int64_t>(limit, int64_t(job.JobMemoryLimit));
    }
    if (job.BasicLimitInformation.LimitFlags & JOB_OBJECT_LIMIT_PROCESS_MEMORY) {
      limit = std::min<int64_t>(limit, int64_t(job.ProcessMemoryLimit));
    }
  }
  return limit;
}

// Of the process's processor group: threads stay in it unless they are moved.
int usable_cores() {
  DWORD_PTR allowed = 0, all = 0;
  if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &all) || allowed == 0) return 1;
  DWORD bytes = 0;
  GetLogicalProcessorInformation(nullptr, &bytes);
  const size_t count = bytes / sizeof(SYSTEM_LOGICAL_PROCESSOR_INFORMATION);
  const auto table = std::make_unique<SYSTEM_LOGICAL_PROCESSOR_INFORMATION[]>(count + 1);
  if (!GetLogicalProcessorInformation(table.get(), &bytes)) return __builtin_popcountll(allowed);
  int cores = 0;
  for (size_t i = 0; i < count; ++i) {
    if (table[i].Relationship == RelationProcessorCore && (table[i].ProcessorMask & allowed)) ++cores;
  }
  return std::max(1, cores);
}

std::string processor_name() {
  char name[256] = "";
  DWORD bytes = sizeof name;
  if (RegGetValueA(HKEY_LOCAL_MACHINE, "HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0", "ProcessorNameString",
                   RRF_RT_REG_SZ, nullptr, name, &bytes) != ERROR_SUCCESS ||
      !*name) {
    return "unknown processor";
  }
  return name;
}

void ignore_file_size_signal() {}  // Windows has neither

}  // namespace lapidary
