// work_shares.h: how a team divides a run of panels.
//
// Three quarters are fixed: each thread owns one contiguous share, which it streams front to back, and always the same
// one, so that memory placed by first touch stays near it. The last quarter is claimed in small pieces, so that a
// thread whose core is taken away for a while does not hold up the others.
#pragma once
#include "kernels/cpu/kernel.h"

namespace lapidary {
namespace {
namespace matmul_cpu {

// Calls body(begin, end) until all of `count` units are done. `piece`: units that are worth a claim.
template <class Body>
LAPIDARY_INLINE void for_each_share(Team& team, int counter, int64_t count, int64_t piece, const Body& body) {
  if (team.threads == 1) {
    if (count > 0) body(int64_t(0), count);
    return;
  }
  const int64_t fixed = count * 3 / 4 / team.threads * team.threads;
  const int64_t share = fixed / team.threads;
  if (share > 0) body(team.thread * share, (team.thread + 1) * share);
  for (;;) {
    const int64_t begin = fixed + team_claim(team, counter, piece);
    if (begin >= count) return;
    body(begin, begin + piece < count ? begin + piece : count);
  }
}

}  // namespace matmul_cpu
}  // namespace
}  // namespace lapidary
