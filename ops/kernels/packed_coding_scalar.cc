// Packed coding for every processor: four lanes are SSE2 on x86-64 and NEON on AArch64, which their compilers assume.
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels/half.h"
#include "kernels/packed_coding.h"

namespace deltallm {
namespace {

constexpr int kLanes = 4;

inline float ToFloat(uint16_t half) { return HalfToFloat(half); }
inline uint16_t ToHalf(float x) { return FloatToHalf(x); }

#define DELTALLM_PACKED_CODING_INSIDE
#include "kernels/packed_coding_vector.h"

inline int32_t LargestLane(const Ints& x) {
  const int32_t low = x[0] > x[1] ? x[0] : x[1];
  const int32_t high = x[2] > x[3] ? x[2] : x[3];
  return low > high ? low : high;
}

#if defined(__SSE2__)
inline __m128i FourBytes(const void* p) { return _mm_cvtsi32_si128(Load<int32_t>(p)); }
inline Ints LoadSigned(const void* p) {
  const __m128i twice = _mm_unpacklo_epi8(FourBytes(p), FourBytes(p));
  return BitsAs<Ints>(_mm_srai_epi32(_mm_unpacklo_epi16(twice, twice), 24));
}
inline Ints LoadUnsigned(const void* p) {
  const __m128i zero = _mm_setzero_si128();
  return BitsAs<Ints>(_mm_unpacklo_epi16(_mm_unpacklo_epi8(FourBytes(p), zero), zero));
}
inline void StoreBytes(void* p, const Ints& x) {
  const auto words = _mm_and_si128(BitsAs<__m128i>(x), _mm_set1_epi32(0xff));
  const __m128i halves = _mm_packs_epi32(words, words);
  Store(p, _mm_cvtsi128_si32(_mm_packus_epi16(halves, halves)));
}
#elif defined(__ARM_NEON)
inline Ints LoadSigned(const void* p) {
  return BitsAs<Ints>(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(Load<uint32_t>(p)))))));
}
inline Ints LoadUnsigned(const void* p) {
  return BitsAs<Ints>(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(Load<uint32_t>(p)))))));
}
inline void StoreBytes(void* p, const Ints& x) {
  const int16x4_t halves = vmovn_s32(BitsAs<int32x4_t>(x));
  Store(p, vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(halves, halves))), 0));
}
#else
inline Ints LoadSigned(const void* p) {
  const auto* bytes = static_cast<const int8_t*>(p);
  return Ints{bytes[0], bytes[1], bytes[2], bytes[3]};
}
inline Ints LoadUnsigned(const void* p) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  return Ints{bytes[0], bytes[1], bytes[2], bytes[3]};
}
inline void StoreBytes(void* p, const Ints& x) {
  for (int i = 0; i < kLanes; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(x[i]);
}
#endif

#include "kernels/hold_rows.h"
#include "kernels/packed_coding_blocks.h"
#include "kernels/packed_coding_rows.h"

}  // namespace

const PackedCoding kScalarPackedCoding = MakePackedCoding("scalar");

}  // namespace deltallm
