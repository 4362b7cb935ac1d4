// row_prefetch.h: rows of a cache that are to come, brought into L1 beside the arithmetic on rows that are there.
#pragma once
#include "core/inline.h"

namespace lapidary {
namespace {
namespace attention {

// Rows that are to come, in the order in which they lie in memory: asked for a line at a time, beside the arithmetic on
// as many. A burst of them fills the miss buffers of L1, and loads that would hit wait behind it. In order: a page's lines
// are read at 20 GB/s where those of four rows alternate, at 29 one row after the other (one thread of a Zen 5). They are
// read once, so they need not enter L2: paged caches decode a tenth faster than with prefetches into all levels.
class Ahead {
 public:
  LAPIDARY_MEMBER_INLINE Ahead(const unsigned char* const* rows, int row_bytes) : rows_(rows), row_bytes_(row_bytes) {}
  // Where the next `bytes` of them begin, no more than are left of a row.
  LAPIDARY_MEMBER_INLINE const unsigned char* take(int bytes) {
    const unsigned char* at = *rows_ + offset_;
    offset_ += bytes;
    if (offset_ >= row_bytes_) {
      offset_ = 0;
      ++rows_;
    }
    return at;
  }

 private:
  const unsigned char* const* rows_;
  const int row_bytes_;
  int offset_ = 0;
};

// Asks for kBytes of a row from byte `at` on, a multiple of kBytes: each line once.
template <int kBytes>
LAPIDARY_INLINE void ask_for(const unsigned char* row, int at) {
  if (kBytes < 64 && at % 64 != 0) return;
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(row + at + i, 0, 0);
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
