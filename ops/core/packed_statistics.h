// Raw counts of a call over a packed cache: docs/spec.md section 6 and docs/cache-format.md, "Counts".
#pragma once

#include <array>
#include <cstdint>

#include "cache/packed_layout.h"
#include "core/attributes.h"
#include "core/checks.h"
#include "core/lengths.h"
#include "core/packed_view.h"
#include "core/packed_writer.h"

namespace deltallm {

/// What the counts of one (batch row, KV head) are taken from.
struct PackedCounting {
  const Geometry& geometry;
  const AttentionRules& rules;
  const RowSpan& span;
  const PackedLayout& layout;
  bool row_granularity;
};

/// The counts of one (batch row, KV head), in the order of the operator's statistics.
class PackedCounts {
 public:
  using Columns = std::array<int64_t, 8>;

  /// Query s, which sees the coded rows of `state` in the key slab as k̂.
  void AddQuery(const PackedCounting& counting, int64_t s, const PackedState& state, const uint8_t* key_slab);

  /// What the call coded, and the cache that it leaves.
  void AddCall(const PackedCounting& counting, const CodingCounts& coded, const PackedState& state);

  const Columns& columns() const { return columns_; }

 private:
  Columns columns_{};
};

}  // namespace deltallm
