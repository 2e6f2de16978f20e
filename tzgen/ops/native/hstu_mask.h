// SPDX-License-Identifier: Apache-2.0
// The mask of tzgen/ops/hstu_attention/mask.py as stretches of keys a query; a test compares the
// two for all short rows.
#pragma once

#include <algorithm>
#include <cstdint>

namespace tzgen {

struct Mask {
  int64_t contextual, window, realtime, sla_k1, sla_k2, tail;
  bool keeps_contextual, stable, by_time;
};

struct Stretch {
  int64_t first, last;  // keys [first, last); empty where last <= first
};

// Keys that a query sees: both stretches of `sure`, those of `timed` that are earlier (or itself),
// and for targets itself. Ascending and disjoint.
struct Seen {
  Stretch sure[2], timed;
};

// Query i of a row of `length` tokens whose history ends at `end`.
static inline Seen seen_by(int64_t i, int64_t length, int64_t end, const Mask& m) {
  const int64_t C = std::min(m.contextual, length);
  const int64_t place = std::min(i, end);
  if (m.sla_k1 > 0 || m.sla_k2 > 0) {
    if (i >= end) return {{{0, end}, {0, 0}}, {0, 0}};
    const int64_t prefix = std::min(std::max(m.sla_k2, C), i + 1);
    return {{{0, prefix}, {std::max(prefix, std::min(i, i - m.sla_k1 + 1)), i + 1}}, {0, 0}};
  }
  const bool windowed = m.window > 0 && !(m.tail > 0 && i >= end - m.tail);
  const int64_t near = windowed ? std::max(C, place - m.window) : C;
  // id(i) - id(j) of a contextual key j
  const bool reaches = !windowed || m.keeps_contextual || place - C + 1 <= m.window;
  const int64_t prefix = reaches ? C : 0;
  if (m.by_time) {
    const int64_t still = m.realtime > 0 ? std::max(end - m.realtime, C) : C;
    return {{{0, prefix}, {near, still}}, {std::max(still, near), i >= still ? end : 0}};
  }
  if (i < C) return {{{0, m.stable ? C : end}, {0, 0}}, {0, 0}};
  return {{{0, std::min(prefix, end)}, {near, i < end ? i + 1 : end}}, {0, 0}};
}

// Whether query i has to add its own key: a target, unless the row is shorter than its prefix.
static inline bool needs_own(const Seen& seen, int64_t i, int64_t end) {
  const auto holds = [i](const Stretch& part) { return part.first <= i && i < part.last; };
  return i >= end && !holds(seen.sure[0]) && !holds(seen.sure[1]);
}

}  // namespace tzgen
