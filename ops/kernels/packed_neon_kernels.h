// The packed kernels for NEON, written once over two products of bytes by fours, which packed_neon.cc and
// packed_neon_dotprod.cc define before they include this file into their anonymous namespace:
//   DotAdd(int32x4_t sum, int8x16_t a, int8x16_t b), where no two products a·b of a pair exceed 16 bits together, and
//   DotAdd(uint32x4_t sum, uint8x16_t a, uint8x16_t b), the same.

#define DELTALLM_PACKED_KERNELS_INSIDE
#include "kernels/packed_vector.h"

constexpr int64_t kLanes = 4;
constexpr int kMostHeads = 2;  // of one pass: × 4 sums × 2 planes
constexpr int64_t kChannelsPerAsk = 4;
#include "kernels/packed_passes.h"

inline float32x4_t LoadHalves(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
/// n ≤ 4 lanes, the others 0.
inline float32x4_t LoadHalvesPart(const uint8_t* p, int64_t n) {
  uint8_t whole[8] = {};
  for (int64_t i = 0; i < 2 * Min(kLanes, n); ++i) whole[i] = p[i];
  return LoadHalves(whole);
}
inline float32x4_t LoadPart(const float* p, int64_t n) {
  float whole[4] = {};
  for (int64_t i = 0; i < Min(kLanes, n); ++i) whole[i] = p[i];
  return vld1q_f32(whole);
}

/// Four bytes in every 32 bits.
inline int8x16_t Broadcast(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline uint8x16_t Broadcast(const uint8_t* p) {
  uint32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

// ---------------------------------------------------------------------------------------------------- quantisation

/// |x| as bits.
inline uint32x4_t MagnitudeBits(float32x4_t x) { return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7FFFFFFFu)); }

/// rint(x · inverse). Where inverse is 0 this is 0, whatever x is: the conversion takes NaN to 0.
inline int32x4_t Codes(float32x4_t x, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(x, inverse)); }

/// The low bytes of four numbers.
inline void StoreBytes(void* p, int32x4_t x) {
  const int16x4_t words = vmovn_s32(x);
  const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
  __builtin_memcpy(p, &four, sizeof four);
}

void QuantizeQuery(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                   const QuantizedQuery& out) {
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    uint32x4_t largest = vdupq_n_u32(0);
    for (int64_t c = 0; c < head_size; c += kLanes) {
      largest = vmaxq_u32(largest, MagnitudeBits(LoadPart(row + c, head_size - c)));
    }
    const Quantizer quantizer(vmaxvq_u32(largest), kMostQuery);
    int32x4_t sum = vdupq_n_s32(0);
    for (int64_t c = 0; c < out.stride; c += kLanes) {
      const int64_t n = c < head_size ? head_size - c : 0;
      const int32x4_t value = Codes(LoadPart(row + Min(c, head_size), n), quantizer.inverse);
      const int32x4_t high = vshrq_n_s32(vaddq_s32(value, vdupq_n_s32(64)), 7);
      vst1_s16(out.value + h * out.stride + c, vmovn_s32(value));
      StoreBytes(out.high + h * out.stride + c, high);
      StoreBytes(out.low + h * out.stride + c, vsubq_s32(value, vshlq_n_s32(high, 7)));
      sum = vaddq_s32(sum, value);
    }
    out.step[h] = quantizer.step;
    out.sum[h] = vaddvq_s32(sum);
  }
}

/// 128 · high + low.
inline float32x4_t Total(int32x4_t high, int32x4_t low) { return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(high, 7), low)); }

/// sum[c] += start + step · total for n ≤ 4 channels.
inline void AddChannels(float32x4_t total, float step, float start, int64_t n, float* sum) {
  const float32x4_t product = vfmaq_n_f32(vdupq_n_f32(start), total, step);
  if (n >= kLanes) {
    vst1q_f32(sum, vaddq_f32(vld1q_f32(sum), product));
    return;
  }
  float whole[4];
  vst1q_f32(whole, product);
  for (int64_t c = 0; c < n; ++c) sum[c] += whole[c];
}

#include "kernels/packed_neon_tiles.h"
#include "kernels/packed_neon_blocks.h"
