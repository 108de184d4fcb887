// Packed kernels for NEON as every aarch64 processor has it.
#include <arm_neon.h>

#include "kernels/packed_kernels.h"

namespace deltallm {
namespace {

inline int32x4_t DotAdd(int32x4_t sum, int8x16_t a, int8x16_t b) {
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  return vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(a, b)));
}

inline uint32x4_t DotAdd(uint32x4_t sum, uint8x16_t a, uint8x16_t b) {
  const uint16x8_t low = vmull_u8(vget_low_u8(a), vget_low_u8(b));
  return vpadalq_u16(sum, vpaddq_u16(low, vmull_high_u8(a, b)));
}

#include "kernels/packed_neon_kernels.h"

}  // namespace

const PackedKernels kNeonPackedKernels = {"neon", QuantizeQuery, ScoreTiles, AddTiles, ScoreBlock, AddBlock};

}  // namespace deltallm
