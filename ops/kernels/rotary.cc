#include "kernels/rotary.h"

namespace deltallm {
namespace {

/// Some pairs, all read before any is written: x and y may be the same row, and this is vector code all the same.
constexpr int64_t kPairs = 8;

template <bool kInterleaved>
void RotatePairs(const float* x, const float* cos, const float* sin, int64_t half, float* y) {
  constexpr int64_t kStep = kInterleaved ? 2 : 1;
  const int64_t partner = kInterleaved ? 1 : half;
  int64_t c = 0;
  for (; c + kPairs <= half; c += kPairs) {
    float first[kPairs];
    float second[kPairs];
    for (int64_t i = 0; i < kPairs; ++i) {
      const float a = x[(c + i) * kStep];
      const float b = x[(c + i) * kStep + partner];
      first[i] = a * cos[c + i] - b * sin[c + i];
      second[i] = b * cos[c + i] + a * sin[c + i];
    }
    for (int64_t i = 0; i < kPairs; ++i) {
      y[(c + i) * kStep] = first[i];
      y[(c + i) * kStep + partner] = second[i];
    }
  }
  for (; c < half; ++c) {
    const float a = x[c * kStep];
    const float b = x[c * kStep + partner];
    y[c * kStep] = a * cos[c] - b * sin[c];
    y[c * kStep + partner] = b * cos[c] + a * sin[c];
  }
}

}  // namespace

void RotateRow(const float* x, int64_t head_size, const float* cos, const float* sin, int64_t half, bool interleaved,
               float* y) {
  if (interleaved) {
    RotatePairs<true>(x, cos, sin, half, y);
  } else {
    RotatePairs<false>(x, cos, sin, half, y);
  }
  for (int64_t c = 2 * half; c < head_size; ++c) y[c] = x[c];
}

}  // namespace deltallm
