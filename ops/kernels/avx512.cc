// AVX-512 (F, BW, DQ, VL).
#include <immintrin.h>

#include "kernels/kernels.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

#define DELTALLM_VECTOR_KERNELS_INSIDE
#include "kernels/avx512_vector.h"
#include "kernels/vector_kernels.h"

}  // namespace

const PrefillArithmetic kAvx512PrefillFloat32 = MakePrefillFloat32();

const Kernels kAvx512Kernels = MakeKernels("avx512");
const PrefillKernels kAvx512PrefillKernels = {"avx512", &kAvx512PrefillFloat32, nullptr, nullptr};

}  // namespace deltallm
