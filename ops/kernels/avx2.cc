// AVX2 with FMA and F16C.
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

struct Vec {
  using Float = __m256;
  static constexpr int64_t kLanes = 8;
  static constexpr int kScoreHeads = 2;            // × 4 keys: 8 of the 16 registers
  static constexpr bool kKeysInRegisters = false;  // 16 vectors of keys, beside 4 accumulators
  static constexpr int kSums = 8;                  // accumulators: 2 heads × 4 vectors
  static constexpr int kOneHeadSums = 12;          // the same, of a single head
  static constexpr int kSumHeads = 2;
  static constexpr int kPanelVectors = 2;  // × 6 rows: 12 accumulators

  static __m256i Mask(int64_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
  }

  static Float Zero() { return _mm256_setzero_ps(); }
  static Float Set(float x) { return _mm256_set1_ps(x); }
  static Float Load(const float* p) { return _mm256_loadu_ps(p); }
  static Float LoadPart(const float* p, int64_t n) { return _mm256_maskload_ps(p, Mask(n)); }
  static Float Load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static Float LoadPart(const uint16_t* p, int64_t n) {
    // There is no masked load of 16-bit lanes.
    uint16_t whole[8] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
    return Load(whole);
  }
  /// The low 15 bits of every number.
  static Float LoadTokens(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtepi32_ps(_mm256_and_si256(wide, _mm256_set1_epi32(0x7fff)));
  }
  static void Store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static void StorePart(float* p, Float x, int64_t n) { _mm256_maskstore_ps(p, Mask(n), x); }
  static void StoreHalf(uint16_t* p, Float x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static void StoreHalfPart(uint16_t* p, Float x, int64_t n) {
    uint16_t whole[8];
    StoreHalf(whole, x);
    for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
  }

  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float Subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float Multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float Divide(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  /// The larger of both; b where a is a NaN.
  static Float Larger(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float SelectLess(Float a, Float b, Float yes, Float no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  /// x − ⌊x⌋.
  static Float Fraction(Float x) { return _mm256_sub_ps(x, _mm256_floor_ps(x)); }
  /// p · 2^⌊x⌋; 0 below −126, whatever p is. For p from 1 to 2 its exponent is only raised; NaN stays NaN.
  static Float TimesTwoToFloor(Float p, Float x) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), 23);
    const Float product = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, Set(-126.0f), _CMP_LT_OQ), product);
  }
  static float Sum(Float x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float Maximum(Float x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static void StoreSums4(float* p, Float a, Float b, Float c, Float d) {
    const Float abcd = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
  }

  static void Transpose(Float (&r)[8]) {
    Float t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

#define DELTALLM_VECTOR_KERNELS_INSIDE
#include "kernels/vector_kernels.h"

constexpr PrefillArithmetic kPrefillFloat32 = MakePrefillFloat32();

}  // namespace

const Kernels kAvx2Kernels = MakeKernels("avx2");
const PrefillKernels kAvx2PrefillKernels = {"avx2", &kPrefillFloat32, nullptr, nullptr};

}  // namespace deltallm
