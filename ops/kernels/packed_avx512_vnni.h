// What the packed AVX-512 VNNI kernels share: vpdpbusd multiplies four unsigned by four signed bytes into each int32
// lane. Included by packed_avx512_vnni_tiles.cc and packed_avx512_vnni_blocks.cc only.
#pragma once

#include <immintrin.h>

#include "kernels/packed_kernels.h"

namespace deltallm {

/// The two halves of kAvx512VnniPackedKernels that are compiled apart, as PackedKernels describes them.
namespace packed_avx512_vnni {
void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead);
void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead& ahead);
}  // namespace packed_avx512_vnni

namespace {

#define DELTALLM_PACKED_KERNELS_INSIDE
#include "kernels/packed_vector.h"

constexpr int64_t kLanes = 16;
constexpr int kMostHeads = 4;  // of one pass

inline __mmask16 Mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline __m512i LoadBytes(const void* p) { return _mm512_loadu_si512(p); }
inline __m512 LoadHalves(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 LoadHalvesPart(const uint8_t* p, __mmask16 mask) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

/// Four bytes in every lane.
inline __m512i Broadcast(const void* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

/// sum + u · s by fours. Written out because GCC 12 moves and spills the sums around the intrinsic.
inline __m512i DotAdd(__m512i sum, __m512i u, __m512i s) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}

/// The low bytes of 64 numbers from 0 to 255, given as words of vectors 0 and 1 and of vectors 2 and 3 of the numbers,
/// each pair packed within 128 bits.
inline __m512i PackBytes(__m512i words01, __m512i words23) {
  // This pack works within 128 bits too: the last step puts the groups of four in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words01, words23));
}

/// |x| as bits.
inline __m512i MagnitudeBits(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
}

inline __m512i Codes(__m512 x, float inverse) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse))); }

/// The sums of the lanes of four vectors.
inline __m128 SumsOfLanes(const __m512 (&x)[kMostHeads]) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/// The largest lanes of four vectors of unsigned integers.
inline __m128i LargestLanes(const __m512i (&x)[kMostHeads]) {
  const __m512i ab = _mm512_max_epu32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  const __m512i cd = _mm512_max_epu32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  const __m512i abcd = _mm512_max_epu32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/// Quantizer for four heads at once. Where the step is NaN the codes are anything: it spoils every result they enter.
struct Quantizers {
  alignas(16) float step[kMostHeads];
  alignas(16) float inverse[kMostHeads];

  /// Of heads whose magnitudes are at most `largest`, a maximum of the bits of non-negative numbers: those of NaN and of
  /// negative ones are larger.
  Quantizers(__m128i largest_bits, float most) {
    const __m128 largest = _mm_castsi128_ps(largest_bits);
    const __mmask8 some = _mm_cmp_ps_mask(largest, _mm_set1_ps(kSmallestRange), _CMP_GE_OQ);
    const __mmask8 not_finite = _mm_cmpgt_epu32_mask(largest_bits, _mm_set1_epi32(0x7F7FFFFF));
    const __m128 quotient = _mm_maskz_div_ps(some, largest, _mm_set1_ps(most));
    _mm_store_ps(step, _mm_mask_mov_ps(quotient, not_finite, _mm_set1_ps(__builtin_nanf(""))));
    _mm_store_ps(inverse, _mm_maskz_div_ps(some, _mm_set1_ps(most), largest));
  }
};

}  // namespace
}  // namespace deltallm
