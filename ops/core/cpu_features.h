// What the processor and the operating system support, of the instruction sets the kernels are written for.
#pragma once

namespace deltallm {

/// Each field includes that its source files were compiled in; all are false on a foreign processor family.
struct CpuFeatures {
  bool avx2 = false;          ///< AVX2, FMA and F16C
  bool avx512 = false;        ///< AVX-512 F, BW, DQ and VL, beside avx2
  bool avx512_vnni = false;   ///< beside avx512
  bool avx512_bf16 = false;   ///< beside avx512
  bool neon = false;          ///< part of every aarch64
  bool neon_dotprod = false;  ///< sdot and udot, beside neon
};

/// Asked once, then remembered; safe to call from any thread.
const CpuFeatures& Cpu();

}  // namespace deltallm
