#include "kernels/hold.h"

#include <cmath>

namespace deltallm {

void HoldElements(const float* key, const float* previous, int64_t head_size, const float* threshold,
                  int64_t threshold_step, float* held) {
  for (int64_t c = 0; c < head_size; ++c) {
    const float difference = key[c] - previous[c];
    // Written so that a NaN difference transmits.
    held[c] = std::fabs(difference) <= threshold[c * threshold_step] ? previous[c] : key[c];
  }
}

bool HoldsRow(const float* key, const float* previous, int64_t head_size, float threshold, const float* weight,
              RowRule rule) {
  double change = 0.0;
  double size = 0.0;
  for (int64_t c = 0; c < head_size; ++c) {
    const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[c]);
    const double k = static_cast<double>(key[c]);
    const double difference = w * (k - static_cast<double>(previous[c]));
    change += difference * difference;
    size += (w * k) * (w * k);
  }
  const double rho = rule == RowRule::kRelative ? std::sqrt(size) : 1.0;
  return std::sqrt(change) <= static_cast<double>(threshold) * rho;
}

}  // namespace deltallm
