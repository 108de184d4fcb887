#include "core/cpu_features.h"

#include <cstdint>

#if defined(DELTALLM_HAVE_X86_KERNELS)
#include <cpuid.h>
#elif defined(DELTALLM_HAVE_NEON_KERNELS) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(DELTALLM_HAVE_NEON_KERNELS) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace deltallm {
namespace {

#if defined(DELTALLM_HAVE_X86_KERNELS)

bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

uint64_t EnabledStates() {
  uint32_t low = 0;
  uint32_t high = 0;
  // xgetbv, written out so that this file needs no special compiler flag.
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

CpuFeatures Detect() {
  CpuFeatures found;
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return found;
  const bool fma = Bit(ecx, 12);
  const bool osxsave = Bit(ecx, 27);
  const bool avx = Bit(ecx, 28);
  const bool f16c = Bit(ecx, 29);
  if (!osxsave || !avx) return found;
  // The operating system must save the wide registers: bits 1, 2 (xmm, ymm) and 5 to 7 (mask registers, zmm).
  const uint64_t states = EnabledStates();
  if ((states & 0x06u) != 0x06u) return found;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return found;
  const uint32_t subleaves = eax;
  found.avx2 = Bit(ebx, 5) && fma && f16c;
  const bool foundation = Bit(ebx, 16), dq = Bit(ebx, 17), bw = Bit(ebx, 30), vl = Bit(ebx, 31);
  found.avx512 = found.avx2 && foundation && dq && bw && vl && (states & 0xE6u) == 0xE6u;
  found.avx512_vnni = found.avx512 && Bit(ecx, 11);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    found.avx512_bf16 = found.avx512 && Bit(eax, 5);
  }
  return found;
}

#elif defined(DELTALLM_HAVE_NEON_KERNELS)

bool HasDotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotprod = 1ul << 20;  // HWCAP_ASIMDDP; older headers lack the name
  return (getauxval(AT_HWCAP) & kDotprod) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

CpuFeatures Detect() {
  CpuFeatures found;
  found.neon = true;
  found.neon_dotprod = HasDotprod();
  return found;
}

#else

CpuFeatures Detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& Cpu() {
  static const CpuFeatures features = Detect();
  return features;
}

}  // namespace deltallm
