// HoldsRow of hold.h, to be compiled for several processors. Each source file includes this into its anonymous
// namespace.

using FourDoubles = double __attribute__((vector_size(32)));

inline void WidenFour(const float* x, FourDoubles* out) {
#if defined(__AVX__)
  // GCC 12 would convert two by two.
  const __m256d four = _mm256_cvtps_pd(_mm_loadu_ps(x));
  __builtin_memcpy(out, &four, sizeof four);
#else
  for (int i = 0; i < 4; ++i) (*out)[i] = static_cast<double>(x[i]);
#endif
}

/// Sums over every eighth to (eighth + 4)th channel.
struct RowSums {
  FourDoubles change = {};
  FourDoubles size = {};

  /// Four channels; `weight` may be null.
  void Add(const float* key, const float* previous, const float* weight) {
    FourDoubles k;
    FourDoubles difference;
    WidenFour(key, &k);
    WidenFour(previous, &difference);
    difference = k - difference;
    if (weight != nullptr) {
      FourDoubles w;
      WidenFour(weight, &w);
      difference *= w;
      k *= w;
    }
    change += difference * difference;
    size += k * k;
  }
};

/// Eight sums each, added up in one fixed order: vector code on every processor, and the same bits.
bool HoldsRowOf(const float* key, const float* previous, int64_t head_size, float threshold, const float* weight,
                RowRule rule) {
  RowSums even;
  RowSums odd;
  int64_t c = 0;
  if (weight == nullptr) {
    for (; c + 8 <= head_size; c += 8) {
      even.Add(key + c, previous + c, nullptr);
      odd.Add(key + c + 4, previous + c + 4, nullptr);
    }
  } else {
    for (; c + 8 <= head_size; c += 8) {
      even.Add(key + c, previous + c, weight + c);
      odd.Add(key + c + 4, previous + c + 4, weight + c + 4);
    }
  }
  if (c < head_size) {
    // Zeros behind the last channels.
    float rest[3][8] = {};
    const auto bytes = static_cast<size_t>(head_size - c) * sizeof(float);
    __builtin_memcpy(rest[0], key + c, bytes);
    __builtin_memcpy(rest[1], previous + c, bytes);
    if (weight != nullptr) __builtin_memcpy(rest[2], weight + c, bytes);
    even.Add(rest[0], rest[1], weight == nullptr ? nullptr : rest[2]);
    odd.Add(rest[0] + 4, rest[1] + 4, weight == nullptr ? nullptr : rest[2] + 4);
  }
  const FourDoubles change = even.change + odd.change;
  const FourDoubles size = even.size + odd.size;
  const double rho = rule == RowRule::kRelative ? __builtin_sqrt((size[0] + size[1]) + (size[2] + size[3])) : 1.0;
  return __builtin_sqrt((change[0] + change[1]) + (change[2] + change[3])) <= static_cast<double>(threshold) * rho;
}
