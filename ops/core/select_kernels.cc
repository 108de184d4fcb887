#include "core/select_kernels.h"

#include "core/refusal.h"

#ifdef DELTALLM_HAVE_X86_KERNELS
#include <cpuid.h>
#endif

namespace deltallm {
namespace {

#ifdef DELTALLM_HAVE_X86_KERNELS

struct X86Features {
  bool avx2 = false;
  bool avx512 = false;
};

uint64_t EnabledStates() {
  uint32_t low = 0;
  uint32_t high = 0;
  // xgetbv, written out so that this file needs no special compiler flag.
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

X86Features DetectX86() {
  X86Features found;
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return found;
  const bool fma = (ecx >> 12) & 1u;
  const bool osxsave = (ecx >> 27) & 1u;
  const bool avx = (ecx >> 28) & 1u;
  const bool f16c = (ecx >> 29) & 1u;
  if (!osxsave || !avx) return found;
  // The operating system must save the wide registers: bits 1, 2 (xmm, ymm) and 5 to 7 (mask registers, zmm).
  const uint64_t states = EnabledStates();
  if ((states & 0x06u) != 0x06u) return found;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return found;
  found.avx2 = ((ebx >> 5) & 1u) && fma && f16c;
  const bool avx512f = (ebx >> 16) & 1u;
  const bool avx512dq = (ebx >> 17) & 1u;
  const bool avx512bw = (ebx >> 30) & 1u;
  const bool avx512vl = (ebx >> 31) & 1u;
  found.avx512 = found.avx2 && avx512f && avx512dq && avx512bw && avx512vl && (states & 0xE6u) == 0xE6u;
  return found;
}

const X86Features& X86() {
  static const X86Features features = DetectX86();
  return features;
}

#endif

}  // namespace

bool IsaSupported(const std::string& isa) {
  if (isa == "scalar") return true;
#ifdef DELTALLM_HAVE_X86_KERNELS
  if (isa == "avx2") return X86().avx2;
  if (isa == "avx512") return X86().avx512;
#endif
#ifdef DELTALLM_HAVE_NEON_KERNELS
  if (isa == "neon") return true;  // part of every aarch64
#endif
  return false;
}

const Kernels& SelectKernels(const char* isa) {
  const std::string wanted = isa == nullptr ? "" : isa;
  if (!wanted.empty()) {
    if (wanted != "scalar" && wanted != "avx2" && wanted != "avx512" && wanted != "neon") {
      Refuse("DELTALLM_ISA is '", wanted, "': give one of scalar, avx2, avx512, neon, or leave it unset.");
    }
    if (!IsaSupported(wanted)) {
      Refuse("DELTALLM_ISA is '", wanted, "', which this processor cannot run: leave it unset to use the best it can.");
    }
  }
#ifdef DELTALLM_HAVE_X86_KERNELS
  if (wanted == "avx512" || (wanted.empty() && X86().avx512)) return kAvx512Kernels;
  if (wanted == "avx2" || (wanted.empty() && X86().avx2)) return kAvx2Kernels;
#endif
#ifdef DELTALLM_HAVE_NEON_KERNELS
  if (wanted == "neon" || wanted.empty()) return kNeonKernels;
#endif
  return kScalarKernels;
}

}  // namespace deltallm
