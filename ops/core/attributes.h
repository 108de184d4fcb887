// The operators' attributes, with GroupQueryAttention's defaults.
#pragma once

#include <cstdint>
#include <string>

#include "cache/cache_format.h"
#include "core/tensor.h"
#include "kernels/hold.h"

namespace deltallm {

/// The lowest precision that a call with several queries may compute in; docs/spec.md section 7.
enum class PrefillCompute : uint8_t { kFloat32, kBfloat16, kInt8 };

/// What decides which keys a query sees, and how: docs/spec.md section 3.
struct AttentionRules {
  float scale = 0.0f;         ///< 0: 1/√D
  float softcap = 0.0f;       ///< 0: none
  int64_t local_window = -1;  ///< The model's own sliding window in tokens; −1: none
  int64_t delta_window = 0;
  int64_t sinks = 0;
  bool exact_prefill = false;
  float v_skip = 0.0f;
  PrefillCompute prefill_compute = PrefillCompute::kFloat32;

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
  CacheFormat cache_format = CacheFormat::kFloat32;  ///< Read only if has_cache_format.

  bool packed_cache() const { return has_cache_format && IsPacked(cache_format); }

  void Check() const;
};

/// "element" or "row" → whether rows are held whole.
bool ParseGranularity(const std::string& text);
RowRule ParseRowRule(const std::string& text);
/// "exact" or "delta" → whether prefill is exact.
bool ParsePrefill(const std::string& text);
PrefillCompute ParsePrefillCompute(const std::string& text);
CacheFormat ParseCacheFormat(const std::string& text);

}  // namespace deltallm
