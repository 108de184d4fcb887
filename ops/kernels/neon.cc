// NEON, as every aarch64 processor has it.
#include <arm_neon.h>

#include "kernels/kernels.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

struct Vec {
  using Float = float32x4_t;
  static constexpr int64_t kLanes = 4;
  static constexpr int kScoreHeads = 4;           // × 4 keys: 16 of the 32 registers
  static constexpr bool kKeysInRegisters = true;  // 16 vectors of keys, beside 4 accumulators
  static constexpr int kSums = 16;                // accumulators: 2 heads × 8 vectors
  static constexpr int kOneHeadSums = 24;         // the same, of a single head
  static constexpr int kSumHeads = 2;
  static constexpr int kPanelVectors = 4;  // × 6 rows: 24 accumulators

  static Float Zero() { return vdupq_n_f32(0.0f); }
  static Float Set(float x) { return vdupq_n_f32(x); }
  static Float Load(const float* p) { return vld1q_f32(p); }
  static Float LoadPart(const float* p, int64_t n) {
    float whole[4] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
    return vld1q_f32(whole);
  }
  static Float Load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static Float LoadPart(const uint16_t* p, int64_t n) {
    uint16_t whole[4] = {};
    for (int64_t i = 0; i < n; ++i) whole[i] = p[i];
    return Load(whole);
  }
  /// The low 15 bits of every number.
  static Float LoadTokens(const uint16_t* p) {
    return vcvtq_f32_u32(vandq_u32(vmovl_u16(vld1_u16(p)), vdupq_n_u32(0x7fff)));
  }
  static void Store(float* p, Float x) { vst1q_f32(p, x); }
  static void StorePart(float* p, Float x, int64_t n) {
    float whole[4];
    vst1q_f32(whole, x);
    for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
  }
  static void StoreHalf(uint16_t* p, Float x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
  static void StoreHalfPart(uint16_t* p, Float x, int64_t n) {
    uint16_t whole[4];
    StoreHalf(whole, x);
    for (int64_t i = 0; i < n; ++i) p[i] = whole[i];
  }

  static Float Add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float Subtract(Float a, Float b) { return vsubq_f32(a, b); }
  static Float Multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Float Divide(Float a, Float b) { return vdivq_f32(a, b); }
  static Float MultiplyAdd(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  /// The larger of both; b where a is a NaN.
  static Float Larger(Float a, Float b) { return vmaxnmq_f32(a, b); }
  static Float SelectLess(Float a, Float b, Float yes, Float no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
  /// x − ⌊x⌋.
  static Float Fraction(Float x) { return vsubq_f32(x, vrndmq_f32(x)); }
  /// p · 2^⌊x⌋; 0 below −126, whatever p is. For p from 1 to 2 its exponent is only raised; NaN stays NaN.
  static Float TimesTwoToFloor(Float p, Float x) {
    const int32x4_t exponent = vshlq_n_s32(vcvtmq_s32_f32(x), 23);
    const int32x4_t product = vaddq_s32(vreinterpretq_s32_f32(p), exponent);
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(product), vcltq_f32(x, vdupq_n_f32(-126.0f))));
  }
  static float Sum(Float x) { return vaddvq_f32(x); }
  static float Maximum(Float x) { return vmaxvq_f32(x); }

  static void StoreSums4(float* p, Float a, Float b, Float c, Float d) {
    vst1q_f32(p, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
  }

  static void Transpose(Float (&r)[4]) {
    const float32x4x2_t low = vtrnq_f32(r[0], r[1]);
    const float32x4x2_t high = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    r[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    r[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    r[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
  }
};

#define DELTALLM_VECTOR_KERNELS_INSIDE
#include "kernels/vector_kernels.h"

constexpr PrefillArithmetic kPrefillFloat32 = MakePrefillFloat32();

}  // namespace

const Kernels kNeonKernels = MakeKernels("neon");
const PrefillKernels kNeonPrefillKernels = {"neon", &kPrefillFloat32, nullptr, nullptr};

}  // namespace deltallm
