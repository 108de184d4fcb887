// The hold transform, docs/spec.md section 2, one row at a time.
#pragma once

#include <cstdint>

namespace deltallm {

enum class RowRule : uint8_t { kRelative, kAbsolute };

/// Element granularity: held[c] = previous[c] where |key[c] − previous[c]| ≤ threshold[c], key[c] elsewhere.
/// threshold_step is 1 for one threshold per channel, 0 for one for all. held may be key's row.
/// Returns how many channels were held.
int64_t HoldElements(const float* key, const float* previous, int64_t head_size, const float* threshold,
                     int64_t threshold_step, float* held);

/// Row granularity: whether ‖w∘(key − previous)‖₂ ≤ threshold·ρ, in double; weight may be null (all ones).
bool HoldsRow(const float* key, const float* previous, int64_t head_size, float threshold, const float* weight,
              RowRule rule);

}  // namespace deltallm
