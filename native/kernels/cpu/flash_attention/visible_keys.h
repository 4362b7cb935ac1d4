// visible_keys.h: the one half-open interval of keys that a query row sees; every mask is one (ops/flash_attention.h).
#pragma once
#include "kernels/cpu/flash_attention/problem.h"

namespace lapidary {
namespace {
namespace attention {

struct Interval {
  int begin, end;  // empty ones are {0, 0}
};

// What query `token` of the sequence sees.
LAPIDARY_INLINE Interval visible_keys(const Problem& p, const Sequence& s, int token, Team& team) {
  int64_t begin = 0, end = s.keys;
  if (p.key_low) {
    begin = p.key_low[s.token_begin + token];
    end = p.key_high[s.token_begin + token];
    if (begin < 0 || begin > s.keys || end < 0 || end > s.keys) {
      team_fail(team, Code::kIndexOutOfRange,
                "flash_attention: keyLow, keyHigh: expected 0 to the sequence's keys, got [%lld, %lld)", begin, end);
      return {0, 0};
    }
  } else if (p.params->causal) {
    const int64_t position = int64_t(s.keys) - s.tokens + token;
    end = position + 1;
    if (p.params->window > 0 && end > p.params->window) begin = end - p.params->window;
  }
  if (begin >= end) return {0, 0};
  if (begin < s.first_held) {
    team_fail(team, Code::kIndexOutOfRange,
              "flash_attention: pageTable: a row sees key %lld, but its ring holds keys from %lld on", begin,
              s.first_held);
    return {0, 0};
  }
  return {int(begin), int(end)};
}

// The smallest interval that holds those of tokens [first, last].
LAPIDARY_INLINE Interval visible_to_any(const Problem& p, const Sequence& s, int first, int last, Team& team) {
  Interval all = {0, 0};
  for (int token = first; token <= last; ++token) {
    const Interval one = visible_keys(p, s, token, team);
    if (one.begin >= one.end) continue;
    if (all.begin >= all.end) all = one;
    all.begin = one.begin < all.begin ? one.begin : all.begin;
    all.end = one.end > all.end ? one.end : all.end;
  }
  return all;
}

}  // namespace attention
}  // namespace
}  // namespace lapidary
