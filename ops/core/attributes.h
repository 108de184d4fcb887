// The operators' attributes, with GroupQueryAttention's defaults.
#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"
#include "kernels/hold.h"

namespace deltallm {

/// What decides which keys a query sees, and how: docs/spec.md section 3.
struct AttentionRules {
  float scale = 0.0f;         ///< 0: 1/√D
  float softcap = 0.0f;       ///< 0: none
  int64_t local_window = -1;  ///< The model's own sliding window in tokens; −1: none
  int64_t delta_window = 0;
  int64_t sinks = 0;
  bool exact_prefill = false;
  float v_skip = 0.0f;

  /// Refuses values outside their ranges, by the attributes' names.
  void Check() const;
};

/// What decides k̂: docs/spec.md section 2.
struct HoldRules {
  bool row_granularity = false;
  RowRule row_rule = RowRule::kRelative;
  int64_t refresh = 0;

  void Check() const;
};

struct DeltaAttentionAttributes {
  int64_t num_heads = 0;
  int64_t kv_num_heads = 0;
  bool do_rotary = false;
  bool rotary_interleaved = false;
  AttentionRules attention;
  HoldRules hold;
  bool has_cache_format = false;
  ElementType cache_format = ElementType::kFloat32;  ///< Read only if has_cache_format.

  void Check() const;
};

/// "element" or "row" → whether rows are held whole.
bool ParseGranularity(const std::string& text);
RowRule ParseRowRule(const std::string& text);
/// "exact" or "delta" → whether prefill is exact.
bool ParsePrefill(const std::string& text);
ElementType ParseCacheFormat(const std::string& text);

}  // namespace deltallm
