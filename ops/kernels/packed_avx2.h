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
constexpr int kMostHeads = 2;  // of one pass: × 4 sums of 8 lanes

inline __m256i LoadBytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i LoadBytes16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256 LoadHalves(const uint8_t* p) { return _mm256_cvtph_ps(LoadBytes16(p)); }

/// Eight bytes in every 64 bits.
inline __m256i Broadcast8(const void* p) {
  int64_t eight;
  __builtin_memcpy(&eight, p, sizeof eight);
  return _mm256_set1_epi64x(eight);
}

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

inline uint32_t LargestLane(__m256i bits) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

inline int32_t SumOfLanes(__m256i x) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four);
}

inline float SumOfLanes(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/// rint(x · inverse), and 0 where inverse is 0, whatever x is.
inline __m256i Codes(__m256 x, float inverse) {
  const __m256i some = _mm256_set1_epi32(inverse != 0.0f ? -1 : 0);
  return _mm256_and_si256(some, _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse))));
}

inline __m128i ToInt16(__m256i x) { return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }
inline void StoreInt16(int16_t* p, __m256i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), ToInt16(x)); }
inline void StoreInt8(int8_t* p, __m256i x) {
  const __m128i words = ToInt16(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline void StoreUint8(uint8_t* p, __m256i x) {
  const __m128i words = ToInt16(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

/// sum[c] += start + step · total[c] for n ≤ 16 channels.
inline void AddChannels(const int32_t* totals, int64_t n, float step, float start, float* sum) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    const __m256 total = _mm256_cvtepi32_ps(LoadBytes(totals + c));
    const __m256 product = _mm256_fmadd_ps(_mm256_set1_ps(step), total, _mm256_set1_ps(start));
    _mm256_storeu_ps(sum + c, _mm256_add_ps(_mm256_loadu_ps(sum + c), product));
  }
  for (; c < n; ++c) sum[c] += start + step * static_cast<float>(totals[c]);
}

}  // namespace
}  // namespace deltallm
