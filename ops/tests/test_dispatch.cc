// Choosing a kernel set.
#include "core/select_kernels.h"

#include "tests/harness.h"

namespace deltallm::test {
namespace {

DELTALLM_TEST(dispatch, each_supported_name_gives_its_set) {
  for (const Kernels* kernels : AvailableKernels()) {
    EXPECT(std::string(SelectKernels(kernels->isa).isa) == kernels->isa, kernels->isa);
  }
  EXPECT(IsaSupported("scalar"), "always there");
}

DELTALLM_TEST(dispatch, nothing_asked_gives_the_best_set) {
  const std::string best = AvailableKernels().back()->isa;
  EXPECT(SelectKernels(nullptr).isa == best, best);
  EXPECT(SelectKernels("").isa == best, best);
}

DELTALLM_TEST(dispatch, an_unknown_or_unsupported_name_is_refused) {
  EXPECT(RefusalOf([] { SelectKernels("sse9"); }) ==
             "DELTALLM_ISA is 'sse9': give one of scalar, avx2, avx512, avx512_vnni, neon, neon_dotprod, or leave it "
             "unset.",
         "unknown");
  const char* foreign = IsaSupported("neon") ? "avx2" : "neon";
  EXPECT(RefusalOf([&] { SelectKernels(foreign); }) ==
             Text("DELTALLM_ISA is '", foreign,
                  "', which this processor cannot run: leave it unset to use the best it can."),
         foreign);
}

}  // namespace
}  // namespace deltallm::test
