// What the packed AVX2 kernels (with FMA and F16C) share. Included by packed_avx2_tiles.cc and packed_avx2_blocks.cc
// only.
#pragma once

#include <immintrin.h>

#include "kernels/packed_kernels.h"

namespace deltallm {

/// The half of kAvx2PackedKernels that is compiled apart, as PackedKernels describes it.
namespace packed_avx2 {
void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead);
void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead& ahead);
}  // namespace packed_avx2

namespace {

#define DELTALLM_PACKED_KERNELS_INSIDE
#include "kernels/packed_vector.h"

constexpr int64_t kLanes = 8;
constexpr int kMostHeads = 4;  // of one pass: × 2 sums leave half of the registers
constexpr int64_t kChannelsPerAsk = 16;
#include "kernels/packed_passes.h"

inline __m256i LoadBytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i LoadBytes16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 LoadHalves(const uint8_t* p) { return _mm256_cvtph_ps(LoadBytes16(p)); }

/// Four bytes in every 32 bits.
inline __m256i Broadcast4(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}

inline __m256i MaskOfFirst(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// ---------------------------------------------------------------------------------------------------- quantisation

/// |x| as bits.
inline __m256i MagnitudeBits(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
}

/// The largest lane of each vector; 0 from kHeads on.
template <int kHeads>
inline __m128i LargestLanes(const __m256i (&x)[kHeads]) {
  __m128i four[kMostHeads] = {};
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    four[h] = _mm_max_epi32(_mm256_castsi256_si128(x[h]), _mm256_extracti128_si256(x[h], 1));
  }
  const __m128i first = _mm_max_epi32(_mm_unpacklo_epi32(four[0], four[1]), _mm_unpackhi_epi32(four[0], four[1]));
  const __m128i second = _mm_max_epi32(_mm_unpacklo_epi32(four[2], four[3]), _mm_unpackhi_epi32(four[2], four[3]));
  return _mm_max_epi32(_mm_unpacklo_epi64(first, second), _mm_unpackhi_epi64(first, second));
}

/// The sum of each vector's lanes; 0 from kHeads on.
template <int kHeads>
inline __m128 SumsOfLanes(const __m256 (&x)[kHeads]) {
  __m128 four[kMostHeads] = {};
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    four[h] = _mm_add_ps(_mm256_castps256_ps128(x[h]), _mm256_extractf128_ps(x[h], 1));
  }
  return _mm_hadd_ps(_mm_hadd_ps(four[0], four[1]), _mm_hadd_ps(four[2], four[3]));
}

/// The Quantizer of every head of a pass.
struct Quantizers {
  alignas(16) float step[kMostHeads];
  alignas(16) float inverse[kMostHeads];

  Quantizers(__m128i largest_bits, float most) {
    const __m128 largest = _mm_castsi128_ps(largest_bits);
    const __m128 finite = _mm_castsi128_ps(_mm_cmpgt_epi32(_mm_set1_epi32(0x7F800000), largest_bits));
    const __m128 some = _mm_and_ps(finite, _mm_cmpge_ps(largest, _mm_set1_ps(kSmallestRange)));
    const __m128 none = _mm_andnot_ps(finite, _mm_set1_ps(__builtin_nanf("")));
    _mm_store_ps(step, _mm_or_ps(none, _mm_and_ps(some, _mm_div_ps(largest, _mm_set1_ps(most)))));
    _mm_store_ps(inverse, _mm_and_ps(some, _mm_div_ps(_mm_set1_ps(most), largest)));
  }
};

/// rint(x · inverse). Of a range that is not finite these are no codes; its step makes every result NaN all the same.
inline __m256i Codes(__m256 x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)); }

/// sum[c] += start + step · total[c] for the first n channels.
inline void AddChannels(__m256i totals, float step, float start, int64_t n, float* sum) {
  const __m256 total = _mm256_cvtepi32_ps(totals);
  const __m256 product = _mm256_fmadd_ps(_mm256_set1_ps(step), total, _mm256_set1_ps(start));
  if (n >= kLanes) {
    _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), product));
    return;
  }
  alignas(32) float whole[kLanes];
  _mm256_store_ps(whole, product);
  for (int64_t c = 0; c < n; ++c) sum[c] += whole[c];
}

}  // namespace
}  // namespace deltallm
