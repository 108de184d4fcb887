#include "core/select_kernels.h"

#include <algorithm>
#include <vector>

#include "core/cpu_features.h"
#include "core/refusal.h"
#include "kernels/packed_coding.h"
#include "kernels/packed_kernels.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_vnni", "neon", "neon_dotprod"};

Kernels Compose(const char* isa, const Kernels& kernels, const PackedKernels& packed, const PackedCoding& coding,
                const PrefillKernels& prefill) {
  Kernels set = kernels;
  set.isa = isa;
  set.packed = &packed;
  set.coding = &coding;
  set.prefill = &prefill;
  return set;
}

/// The sets this processor runs, from the plainest to the best.
std::vector<Kernels> ComposeSupported() {
  const CpuFeatures& cpu = Cpu();
  std::vector<Kernels> sets;
  sets.push_back(Compose("scalar", kScalarKernels, kScalarPackedKernels, kScalarPackedCoding, kScalarPrefillKernels));
#ifdef DELTALLM_HAVE_X86_KERNELS
  if (cpu.avx2) {
    sets.push_back(Compose("avx2", kAvx2Kernels, kAvx2PackedKernels, kAvx2PackedCoding, kAvx2PrefillKernels));
  }
  if (cpu.avx512) {
    sets.push_back(Compose("avx512", kAvx512Kernels, kAvx2PackedKernels, kAvx512PackedCoding, kAvx512PrefillKernels));
  }
  if (cpu.avx512_vnni) {
    sets.push_back(Compose("avx512_vnni", kAvx512Kernels, kAvx512VnniPackedKernels, kAvx512PackedCoding,
                           cpu.avx512_bf16 ? kAvx512Bf16PrefillKernels : kAvx512PrefillKernels));
  }
#endif
#ifdef DELTALLM_HAVE_NEON_KERNELS
  sets.push_back(Compose("neon", kNeonKernels, kNeonPackedKernels, kScalarPackedCoding, kNeonPrefillKernels));
  if (cpu.neon_dotprod) {
    sets.push_back(
        Compose("neon_dotprod", kNeonKernels, kNeonDotprodPackedKernels, kScalarPackedCoding, kNeonPrefillKernels));
  }
#endif
  static_cast<void>(cpu);
  return sets;
}

const std::vector<Kernels>& SupportedSets() {
  static const std::vector<Kernels> sets = ComposeSupported();
  return sets;
}

const Kernels* FindSupported(const std::string& isa) {
  for (const Kernels& set : SupportedSets()) {
    if (isa == set.isa) return &set;
  }
  return nullptr;
}

}  // namespace

bool IsaSupported(const std::string& isa) { return FindSupported(isa) != nullptr; }

const Kernels& SelectKernels(const char* isa) {
  const std::string wanted = isa == nullptr ? "" : isa;
  if (wanted.empty()) return SupportedSets().back();
  if (const Kernels* set = FindSupported(wanted)) return *set;
  std::string names;
  for (const char* name : kNames) {
    if (wanted == name) {
      Refuse("DELTALLM_ISA is '", wanted, "', which this processor cannot run: leave it unset to use the best it can.");
    }
    names += names.empty() ? name : std::string(", ") + name;
  }
  Refuse("DELTALLM_ISA is '", wanted, "': give one of ", names, ", or leave it unset.");
}

}  // namespace deltallm
