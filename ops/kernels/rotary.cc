#include "kernels/rotary.h"

namespace deltallm {

void RotateRow(const float* x, int64_t head_size, const float* cos, const float* sin, int64_t half, bool interleaved,
               float* y) {
  const int64_t step = interleaved ? 2 : 1;
  const int64_t partner = interleaved ? 1 : half;
  for (int64_t c = 0; c < half; ++c) {
    const float first = x[c * step];
    const float second = x[c * step + partner];
    y[c * step] = first * cos[c] - second * sin[c];
    y[c * step + partner] = second * cos[c] + first * sin[c];
  }
  for (int64_t c = 2 * half; c < head_size; ++c) y[c] = x[c];
}

}  // namespace deltallm
