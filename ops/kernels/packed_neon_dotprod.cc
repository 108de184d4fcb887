// Packed kernels for NEON with sdot and udot.
#include <arm_neon.h>

#include "kernels/packed_kernels.h"

namespace deltallm {
namespace {

inline int32x4_t DotAdd(int32x4_t sum, int8x16_t a, int8x16_t b) { return vdotq_s32(sum, a, b); }
inline uint32x4_t DotAdd(uint32x4_t sum, uint8x16_t a, uint8x16_t b) { return vdotq_u32(sum, a, b); }

#include "kernels/packed_neon_kernels.h"

}  // namespace

const PackedKernels kNeonDotprodPackedKernels = {"neon_dotprod", QuantizeQuery, ScoreTiles,
                                                 AddTiles,       ScoreBlock,    AddBlock};

}  // namespace deltallm
