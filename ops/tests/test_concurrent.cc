// One kernel serves concurrent Runs, each on several threads: run under ThreadSanitizer by `make sanitize`.
#include <thread>

#include "tests/packed_case.h"

namespace deltallm::test {
namespace {

constexpr int kCallers = 4;

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Prompt, then a step on the caches it left: all callers read the same inputs and, in the step, the same past.
void CallAtOnce(const DeltaCase& c, const std::string& what) {
  for (const Kernels* kernels : AvailableKernels()) {
    DeltaResult past = c.Run(*kernels, Serial(), 0, c.tokens - 1, nullptr, false, 0);
    const DeltaResult alone = c.Run(*kernels, Serial(), c.tokens - 1, c.tokens, &past, false, 0);
    std::vector<DeltaResult> prompts(kCallers), steps(kCallers);
    std::vector<std::thread> callers;
    for (size_t i = 0; i < kCallers; ++i) {
      callers.emplace_back([&, i] {
        prompts[i] = c.Run(*kernels, ThreadPerTask(), 0, c.tokens - 1, nullptr, false, 0);
        steps[i] = c.Run(*kernels, ThreadPerTask(), c.tokens - 1, c.tokens, &past, false, 0);
      });
    }
    for (std::thread& caller : callers) caller.join();
    for (size_t i = 0; i < kCallers; ++i) {
      EXPECT(prompts[i].key.bytes == past.key.bytes, what, kernels->isa, " prompt of caller ", i);
      EXPECT(prompts[i].value.bytes == past.value.bytes, what, kernels->isa, " prompt of caller ", i);
      EXPECT(SameBits(prompts[i].output, past.output), what, kernels->isa, " prompt of caller ", i);
      EXPECT(steps[i].key.bytes == alone.key.bytes, what, kernels->isa, " step of caller ", i);
      EXPECT(SameBits(steps[i].output, alone.output), what, kernels->isa, " step of caller ", i);
      EXPECT(steps[i].statistics == alone.statistics, what, kernels->isa, " step of caller ", i);
    }
  }
}

}  // namespace

DELTALLM_TEST(concurrent, float_caches) {
  Random random;
  for (int i = 0; i < 2; ++i) CallAtOnce(RandomDeltaCase(random, random.Int(30, 90)), "float ");
}

DELTALLM_TEST(concurrent, packed_caches) {
  Random random;
  for (const CacheFormat format : {CacheFormat::kInt8, CacheFormat::kInt4}) {
    const DeltaCase c = RandomPackedCase(random, format, random.Int(180, 300));
    CallAtOnce(c, DescribePacked(c));
  }
}

}  // namespace deltallm::test
