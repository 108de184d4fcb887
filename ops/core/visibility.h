// Which keys a query sees, and which of them as k̂: docs/spec.md section 3, in rows of the cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/attributes.h"
#include "core/lengths.h"

namespace deltallm {

/// Rows [begin, end); empty if end ≤ begin.
struct KeyRange {
  int64_t begin;
  int64_t end;
  int64_t size() const { return std::max<int64_t>(end - begin, 0); }
};

inline KeyRange Intersect(KeyRange a, KeyRange b) { return {std::max(a.begin, b.begin), std::min(a.end, b.end)}; }

/// Keys that the query at cache row `row` sees by causality, padding and the model's own window. Both ends only grow
/// with `row`; a query before the first real token sees nothing.
inline KeyRange VisibleKeys(const AttentionRules& rules, const RowSpan& span, int64_t row) {
  const int64_t window_begin = rules.local_window < 0 ? span.start : row - rules.local_window + 1;
  return {std::max(span.start, window_begin), std::min(span.length, row + 1)};
}

/// Keys that this query reads as k̂, if it sees them. A query behind the last real token reads like that token.
inline KeyRange HeldKeys(const AttentionRules& rules, const RowSpan& span, int64_t new_tokens, int64_t row) {
  int64_t newest = std::min(row + 1, span.length);
  if (rules.exact_prefill && new_tokens > 1) newest = std::min(newest, span.past);
  return {span.start + rules.sinks, newest - rules.delta_window};
}

/// Rows that leave the window in a call, and so are coded in it.
inline KeyRange CodedRows(const AttentionRules& rules, const RowSpan& span) {
  const int64_t begin = std::max(span.start + rules.sinks, span.past - rules.delta_window);
  return {begin, std::max(begin, span.length - rules.delta_window)};
}

}  // namespace deltallm
