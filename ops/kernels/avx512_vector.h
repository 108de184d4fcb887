// The vector type of the AVX-512 kernels (F, BW, DQ, VL). To be included inside an anonymous namespace, after
// immintrin.h, by files that are compiled for AVX-512 only.

#ifndef DELTALLM_VECTOR_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its anonymous namespace."
#endif

struct Vec {
  using Float = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int kScoreHeads = 4;           // × 4 keys: 16 accumulators
  static constexpr bool kKeysInRegisters = true;  // 16 vectors of keys, beside 4 accumulators
  static constexpr int kSums = 16;                // accumulators: 4 heads × 4 vectors
  static constexpr int kOneHeadSums = 16;         // the same, of a single head
  static constexpr int kSumHeads = 4;
  static constexpr int kPanelVectors = 4;  // × 6 rows: 24 accumulators

  static __mmask16 Mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static Float Zero() { return _mm512_setzero_ps(); }
  static Float Set(float x) { return _mm512_set1_ps(x); }
  static Float Load(const float* p) { return _mm512_loadu_ps(p); }
  static Float LoadPart(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static Float Load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float LoadPart(const uint16_t* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(Mask(n), p)); }
  /// The low 15 bits of every number.
  static Float LoadTokens(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_cvtepi32_ps(_mm512_and_si512(wide, _mm512_set1_epi32(0x7fff)));
  }
  static void Store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static void StorePart(float* p, Float x, int64_t n) { _mm512_mask_storeu_ps(p, Mask(n), x); }
  static __m256i ToHalf(Float x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static void StoreHalf(uint16_t* p, Float x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ToHalf(x)); }
  static void StoreHalfPart(uint16_t* p, Float x, int64_t n) { _mm256_mask_storeu_epi16(p, Mask(n), ToHalf(x)); }

  static Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float Subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float Multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float Divide(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  /// The larger of both; b where a is a NaN.
  static Float Larger(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float SelectLess(Float a, Float b, Float yes, Float no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
  }
  /// x − ⌊x⌋; 0 for −∞.
  static Float Fraction(Float x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
  /// p · 2^⌊x⌋; 0 for −∞.
  static Float TimesTwoToFloor(Float p, Float x) { return _mm512_scalef_ps(p, x); }
  static float Sum(Float x) { return _mm512_reduce_add_ps(x); }
  static float Maximum(Float x) { return _mm512_reduce_max_ps(x); }

  static void StoreSums4(float* p, Float a, Float b, Float c, Float d) {
    const Float ab = Add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const Float cd = Add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const Float abcd = Add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  }

  static void Transpose(Float (&r)[16]) {
    Float t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
      r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
    }
  }
};
