// work_shares.h: how a team divides a run of panels.
//
// Most are fixed: each thread owns one contiguous share, which it streams front to back, and always the same one, so that
// memory placed by first touch stays near it. The rest is claimed in pieces that become smaller towards the end, so
// that a thread whose core is taken away for a while does not hold up the others. A piece is claimed before the one
// ahead of it is begun: streams are prefetched across the border.
#pragma once
#include "kernels/cpu/kernel.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// How units are divided: thread t's fixed share begins at t · share; pieces are claimed from `claimed` on.
struct Shares {
  int64_t count, smallest, share, claimed;
};
// `smallest`: units that are worth a claim; `fixed_eighths`: how much of the whole is fixed.
LAPIDARY_INLINE Shares divide(int threads, int64_t count, int64_t smallest, int fixed_eighths = 6) {
  const bool fixed = threads == 1 || fixed_eighths == 8;
  const int64_t share = fixed ? (count + threads - 1) / threads : count * fixed_eighths / 8 / threads;
  return {count, smallest, share, fixed ? count : threads * share};
}

// The claimed pieces, in order. Sizes depend on the arguments alone, so every thread computes the same ones.
class Pieces {
 public:
  LAPIDARY_MEMBER_INLINE Pieces(int threads, const Shares& shares)
      : threads_(threads), count_(shares.count), smallest_(shares.smallest), begin_(0), end_(shares.claimed) {
    step();
  }
  // Goes forward to piece number `index`; an empty one past the last.
  LAPIDARY_MEMBER_INLINE Range go_to(int64_t index) {
    for (; index_ < index && begin_ < count_; ++index_) step();
    return {begin_, end_};
  }

 private:
  LAPIDARY_MEMBER_INLINE void step() {
    begin_ = end_;
    const int64_t part = (count_ - begin_) / (2 * threads_);
    end_ = begin_ + (part > smallest_ ? part : smallest_);
    if (end_ > count_) end_ = count_;
  }

  const int threads_;
  const int64_t count_, smallest_;
  int64_t index_ = 0, begin_, end_;
};

// Calls body(begin, end, next) until all units are done; `next` is the first unit of this thread's next call, or its
// last one again where there is none.
template <class Body>
LAPIDARY_INLINE void for_each_share(Team& team, int counter, const Shares& shares, const Body& body) {
  const int64_t begin = team.thread * shares.share, end = begin + shares.share;
  Range now = {begin < shares.count ? begin : shares.count, end < shares.count ? end : shares.count};
  if (shares.claimed >= shares.count) {
    if (now.begin < now.end) body(now.begin, now.end, now.end - 1);
    return;
  }
  Pieces pieces(team.threads, shares);
  if (shares.share == 0) now = pieces.go_to(team_claim(team, counter, 1));
  while (now.begin < now.end) {
    const Range next = pieces.go_to(team_claim(team, counter, 1));
    body(now.begin, now.end, next.begin < next.end ? next.begin : now.end - 1);
    now = next;
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
