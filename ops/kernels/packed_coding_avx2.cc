// Packed coding with AVX2 and F16C.
#include <immintrin.h>

#include "kernels/packed_coding.h"

namespace deltallm {
namespace {

constexpr int kLanes = 8;

inline float ToFloat(uint16_t half) { return _cvtsh_ss(half); }
inline uint16_t ToHalf(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

#define DELTALLM_PACKED_CODING_INSIDE
#include "kernels/packed_coding_vector.h"

inline int32_t LargestLane(const Ints& x) {
  const auto all = BitsAs<__m256i>(x);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four);
}
inline __m128i EightBytes(const void* p) { return _mm_cvtsi64_si128(Load<int64_t>(p)); }
inline Ints LoadSigned(const void* p) { return BitsAs<Ints>(_mm256_cvtepi8_epi32(EightBytes(p))); }
inline Ints LoadUnsigned(const void* p) { return BitsAs<Ints>(_mm256_cvtepu8_epi32(EightBytes(p))); }
inline void StoreBytes(void* p, const Ints& x) {
  const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i four = _mm256_shuffle_epi8(BitsAs<__m256i>(x), lowest);
  const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  Store(p, static_cast<int64_t>(_mm_cvtsi128_si64(eight)));
}

#include "kernels/hold_rows.h"
#include "kernels/packed_coding_blocks.h"
#include "kernels/packed_coding_rows.h"

}  // namespace

const PackedCoding kAvx2PackedCoding = MakePackedCoding("avx2");

}  // namespace deltallm
