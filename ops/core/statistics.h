// Raw counts of one DeltaAttention call: docs/spec.md section 6.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/float_cache.h"
#include "core/attributes.h"
#include "core/checks.h"
#include "core/lengths.h"
#include "core/parallel.h"

namespace deltallm {

/// How many channels of `row` equal those of `before` (as values: NaN equals nothing).
int64_t EqualChannels(ElementType type, const char* row, const char* before, int64_t head_size);

/// Whether all channels of `row` equal those of `before`; looks no further than the first difference.
bool RowsEqual(ElementType type, const char* row, const char* before, int64_t head_size);

struct StatisticsCall {
  Geometry geometry;
  AttentionRules rules;
  bool row_granularity = false;
  const RowSpan* spans = nullptr;
  ConstFloatCache key;                ///< after the call
  const int64_t* left_out = nullptr;  ///< [Hkv], values that v_skip left out beside those in runs
};

/// Writes int64 [Hkv, 8].
void CountStatistics(const StatisticsCall& call, const Parallel& parallel, int64_t* statistics);

}  // namespace deltallm
