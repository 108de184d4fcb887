// Packed coding with AVX-512 and F16C.
#include <immintrin.h>

#include "kernels/packed_coding.h"

namespace deltallm {
namespace {

constexpr int kLanes = 16;

inline float ToFloat(uint16_t half) { return _cvtsh_ss(half); }
inline uint16_t ToHalf(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }

#define DELTALLM_PACKED_CODING_INSIDE
#include "kernels/packed_coding_vector.h"

inline int32_t LargestLane(const Ints& x) { return _mm512_reduce_max_epi32(BitsAs<__m512i>(x)); }
inline __m128i SixteenBytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline Ints LoadSigned(const void* p) { return BitsAs<Ints>(_mm512_cvtepi8_epi32(SixteenBytes(p))); }
inline Ints LoadUnsigned(const void* p) { return BitsAs<Ints>(_mm512_cvtepu8_epi32(SixteenBytes(p))); }
inline void StoreBytes(void* p, const Ints& x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(BitsAs<__m512i>(x)));
}

#include "kernels/hold_rows.h"
#include "kernels/packed_coding_blocks.h"
#include "kernels/packed_coding_rows.h"

}  // namespace

const PackedCoding kAvx512PackedCoding = MakePackedCoding("avx512");

}  // namespace deltallm
