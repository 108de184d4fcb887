// What a range of keys contributes to one query per head of a group, and how ranges merge.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/kernels.h"

namespace deltallm {

/// Running maxima, denominators and sums of values of an online softmax. Scores and maxima are in units of log 2.
struct Partial {
  static constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

  float* maximum;      ///< [G]
  float* denominator;  ///< [G]
  float* sum;          ///< [G, D]

  static int64_t Size(int64_t group, int64_t head_size) { return group * (head_size + 2); }
  Partial(float* data, int64_t group) : maximum(data), denominator(data + group), sum(data + 2 * group) {}

  void Clear(int64_t group, int64_t head_size) const {
    std::fill_n(maximum, group, kNegativeInfinity);
    std::fill_n(denominator, group, 0.0f);
    std::fill_n(sum, group * head_size, 0.0f);
  }

  /// Raises head g's maximum to that of `scores` and returns what to subtract from them before 2^x.
  float Raise(const Kernels& kernels, int64_t g, int64_t head_size, const float* scores, int64_t count) const {
    const float top = std::max(maximum[g], kernels.maximum(scores, count));
    if (top > maximum[g]) {
      // The first block has nothing to rescale: 2^−∞ is 0.
      const float keep = std::exp2(maximum[g] - top);
      denominator[g] *= keep;
      kernels.scale(sum + g * head_size, head_size, keep);
      maximum[g] = top;
    }
    return top == kNegativeInfinity ? 0.0f : top;
  }

  /// Adds `other` to this.
  void Merge(const Partial& other, int64_t group, int64_t head_size) const {
    for (int64_t g = 0; g < group; ++g) {
      const float top = std::max(maximum[g], other.maximum[g]);
      if (top == kNegativeInfinity) continue;
      const float keep = std::exp2(maximum[g] - top);
      const float add = std::exp2(other.maximum[g] - top);
      maximum[g] = top;
      denominator[g] = denominator[g] * keep + other.denominator[g] * add;
      float* into = sum + g * head_size;
      const float* added = other.sum + g * head_size;
      for (int64_t c = 0; c < head_size; ++c) into[c] = into[c] * keep + added[c] * add;
    }
  }
};

/// Ranges of keys per head: more than one only where whole heads would leave threads without work.
inline int64_t SplitsPerHead(int64_t threads, int64_t heads, int64_t most_keys, int64_t keys_per_split) {
  if (heads % threads == 0) return 1;
  const int64_t wanted = (4 * threads + heads - 1) / heads;
  return std::max<int64_t>(1, std::min(wanted, most_keys / keys_per_split));
}

}  // namespace deltallm
