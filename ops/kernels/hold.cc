#include "kernels/hold.h"

#include <cmath>
#include <cstddef>

namespace deltallm {
namespace {

#include "kernels/hold_rows.h"

}  // namespace

int64_t HoldElements(const float* key, const float* previous, int64_t head_size, const float* threshold,
                     int64_t threshold_step, float* held) {
  int32_t count = 0;
  for (int64_t c = 0; c < head_size; ++c) {
    const float difference = key[c] - previous[c];
    // Written so that a NaN difference transmits.
    const bool holds = std::fabs(difference) <= threshold[c * threshold_step];
    held[c] = holds ? previous[c] : key[c];
    count += holds ? 1 : 0;
  }
  return count;
}

bool HoldsRow(const float* key, const float* previous, int64_t head_size, float threshold, const float* weight,
              RowRule rule) {
  return HoldsRowOf(key, previous, head_size, threshold, weight, rule);
}

}  // namespace deltallm
