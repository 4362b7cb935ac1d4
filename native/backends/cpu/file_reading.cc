#include "backends/cpu/file_reading.h"

#include <cerrno>

#include "core/system.h"

namespace lapidary {
namespace {

// A huge page: whoever touches it first zeroes all of it.
constexpr int64_t kPiece = int64_t(2) << 20;

struct Params {
  FileReading* reading;
};

void note_missing(FileReading& reading, int64_t at) {
  int64_t known = reading.first_missing.load();
  while (at < known && !reading.first_missing.compare_exchange_weak(known, at)) {
  }
}

void read_piece(FileReading& reading, int64_t begin, int64_t end) {
  while (begin < end) {
    const int64_t got = read_at(reading.descriptor, reading.to + begin, size_t(end - begin), reading.offset + begin);
    if (got <= 0) {
      if (got < 0) reading.error.store(errno);
      return note_missing(reading, begin);
    }
    begin += got;
  }
}

void read_file(const Call& call, Team& team) {
  FileReading& reading = *call.params_as<Params>().reading;
  for (;;) {
    const int64_t begin = team_claim(team, 0, kPiece);
    if (begin >= reading.bytes || begin >= reading.first_missing.load()) return;
    read_piece(reading, begin, begin + kPiece < reading.bytes ? begin + kPiece : reading.bytes);
  }
}

}  // namespace

const Kernel read_file_kernel = {OpId::kCount, read_file, nullptr};

void set_file_reading(Call& call, FileReading* reading) { call.params_as<Params>() = {reading}; }

}  // namespace lapidary
