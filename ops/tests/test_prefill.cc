// Blocks of queries over a cache and over blocks of the past, in every arithmetic, against attention in double loops.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/prefill_kernels.h"
#include "tests/prefill_case.h"

namespace deltallm::test {
namespace {

void ExpectWithinTolerance(const std::vector<float>& found, const PrefillExpected& expected, const std::string& what) {
  for (size_t i = 0; i < found.size(); ++i) {
    if (!(std::fabs(found[i] - expected.output[i]) <= expected.tolerance[i])) {
      EXPECT(false, what, " at ", i, ": ", found[i], " for ", expected.output[i], " within ", expected.tolerance[i]);
      return;
    }
  }
}

void CheckRandomCases(bool with_past, int trials) {
  Random random;
  for (int trial = 0; trial < Trials(trials); ++trial) {
    PrefillCase c = RandomPrefillCase(random, with_past);
    for (const Kernels* kernels : AvailableKernels()) {
      for (const PrefillCompute compute : ComputesOf(*kernels)) {
        c.rules.prefill_compute = compute;
        ExpectWithinTolerance(c.Run(*kernels, Serial()), Expect(c),
                              Text(kernels->isa, " trial ", trial, ": ", c.Describe()));
      }
    }
  }
}

DELTALLM_TEST(prefill, blocks_of_queries_over_a_cache_follow_the_specification) { CheckRandomCases(false, 40); }

DELTALLM_TEST(prefill, blocks_of_queries_over_blocks_of_the_past_follow_the_specification) {
  CheckRandomCases(true, 40);
}

/// One KV head of two query heads, no rule but causality.
PrefillCase PlainCase(Random& random, int64_t tokens, int64_t head_size) {
  PrefillCase c;
  c.geometry = {1, tokens, 2, 1, head_size};
  c.spans = {{0, 0, tokens}};
  c.capacity = tokens;
  c.query = random.Normals(2 * tokens * head_size);
  c.key = random.Normals(tokens * head_size);
  c.value = random.Normals(tokens * head_size);
  return c;
}

double RelativeError(const std::vector<float>& found, const std::vector<float>& expected) {
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    error += std::pow(double{found[i]} - expected[i], 2);
    norm += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(error / norm);
}

DELTALLM_TEST(prefill, lower_precision_is_as_near_to_float32_as_documented) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t head_size : {64, 96}) {
      PrefillCase c = PlainCase(random, 700, head_size);
      const std::vector<float> exact = c.Run(*kernels, Serial());
      for (const PrefillCompute compute : ComputesOf(*kernels)) {
        if (compute == PrefillCompute::kFloat32) continue;
        c.rules.prefill_compute = compute;
        const double error = RelativeError(c.Run(*kernels, Serial()), exact);
        // docs/spec.md section 7. Below the lower end the arithmetic asked for was not the one used.
        const double most = compute == PrefillCompute::kBfloat16 ? 4e-3 : 1e-2;
        EXPECT(error <= most && error > most / 10, kernels->isa, " compute ", static_cast<int>(compute), " D ",
               head_size, ": ", error);
      }
    }
  }
}

DELTALLM_TEST(prefill, a_processor_without_the_arithmetic_computes_in_float32) {
  Random random;
  PrefillCase c = PlainCase(random, 70, 33);
  for (const Kernels* kernels : AvailableKernels()) {
    if (kernels->prefill->int8 != nullptr) continue;
    const std::vector<float> exact = c.Run(*kernels, Serial());
    for (const PrefillCompute compute : {PrefillCompute::kBfloat16, PrefillCompute::kInt8}) {
      c.rules.prefill_compute = compute;
      EXPECT(c.Run(*kernels, Serial()) == exact, kernels->isa);
    }
    c.rules.prefill_compute = PrefillCompute::kFloat32;
  }
}

DELTALLM_TEST(prefill, a_row_that_is_not_finite_reaches_only_those_who_see_it) {
  Random random;
  const int64_t tokens = 90;
  const int64_t size = 20;
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()}) {
    for (const Kernels* kernels : AvailableKernels()) {
      for (const PrefillCompute compute : ComputesOf(*kernels)) {
        PrefillCase c = PlainCase(random, tokens, size);
        c.rules.prefill_compute = compute;
        const std::vector<float> clean = c.Run(*kernels, Serial());
        const std::string what = Text(kernels->isa, " compute ", static_cast<int>(compute), " ", poison);
        std::vector<float> saved = c.query;
        // Query 13 of head 1.
        c.query[static_cast<size_t>((13 * 2 + 1) * size + 3)] = poison;
        std::vector<float> found = c.Run(*kernels, Serial());
        for (size_t i = 0; i < found.size(); ++i) {
          const bool hit = static_cast<int64_t>(i) / size == 13 * 2 + 1;
          EXPECT(hit || found[i] == clean[i], what, " query, element ", i);
        }
        c.query = saved;
        c.key[static_cast<size_t>(61 * size)] = poison;
        found = c.Run(*kernels, Serial());
        for (size_t i = 0; i < static_cast<size_t>(61 * 2 * size); ++i) {
          EXPECT(found[i] == clean[i], what, " key, element ", i);
        }
        for (size_t i = static_cast<size_t>(61 * 2 * size); i < found.size() && std::isnan(poison); ++i) {
          EXPECT(std::isnan(found[i]), what, " key, element ", i);
        }
      }
    }
  }
}

DELTALLM_TEST(prefill, values_left_out_are_counted_and_counting_changes_nothing) {
  Random random;
  for (int trial = 0; trial < Trials(12); ++trial) {
    PrefillCase c = RandomPrefillCase(random, trial % 2 == 1);
    c.rules.v_skip = 0.2f;
    for (const Kernels* kernels : AvailableKernels()) {
      for (const PrefillCompute compute : ComputesOf(*kernels)) {
        c.rules.prefill_compute = compute;
        const std::string what = Text(kernels->isa, " trial ", trial, ": ", c.Describe());
        std::vector<std::atomic<int64_t>> counters(static_cast<size_t>(c.geometry.kv_heads));
        SkipCounter counted{counters.data(), nullptr};
        ExpectWithinTolerance(c.Run(*kernels, Serial(), &counted), Expect(c), what + "counted");
        ExpectWithinTolerance(c.Run(*kernels, Serial()), Expect(c), what);
      }
    }
  }
  // Two keys, the second 2^-10 of the first: it is left out for both query heads, and the first query has no second
  // key.
  PrefillCase c = PlainCase(random, 2, 2);
  c.rules.scale = 1.0f;
  c.rules.v_skip = 0.01f;
  c.query = {1, 0, 1, 0, 1, 0, 1, 0};
  c.key = {6.931f, 0, 0, 0};
  c.value = {1, 2, 3, 4};
  for (const Kernels* kernels : AvailableKernels()) {
    std::vector<std::atomic<int64_t>> counters(1);
    SkipCounter counted{counters.data(), nullptr};
    const std::vector<float> counted_output = c.Run(*kernels, Serial(), &counted);
    const std::vector<float> output = c.Run(*kernels, Serial());
    EXPECT(counters[0] == 2, kernels->isa, " ", counters[0]);
    const float kept = 1.0f / (1.0f + 0x1p-10f);
    EXPECT(std::fabs(output[4] - kept) < 1e-5f && std::fabs(counted_output[4] - kept) < 1e-5f, kernels->isa, " ",
           output[4], " ", counted_output[4]);
  }
}

DELTALLM_TEST(prefill, far_values_below_the_threshold_are_not_read) {
  // Every query sees one sharp key; behind it, stretches of NaN values that no weight reaches.
  Random random;
  PrefillCase c = PlainCase(random, 400, 17);
  c.rules.v_skip = 0.01f;
  c.rules.scale = 1.0f;
  std::fill(c.query.begin(), c.query.end(), 1.0f);
  std::fill(c.key.begin(), c.key.end(), 0.0f);
  for (int64_t i = 0; i < 17; ++i) c.key[static_cast<size_t>(3 * 17 + i)] = 2.0f;
  for (int64_t j = 64; j < 128; ++j) c.value[static_cast<size_t>(j * 17 + 5)] = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels* kernels : AvailableKernels()) {
    for (const PrefillCompute compute : ComputesOf(*kernels)) {
      c.rules.prefill_compute = compute;
      const std::vector<float> output = c.Run(*kernels, Serial());
      for (const float value : output) EXPECT(!std::isnan(value), kernels->isa, " ", static_cast<int>(compute));
    }
  }
}

DELTALLM_TEST(prefill, an_unknown_compute_is_refused) {
  EXPECT(ParsePrefillCompute("bfloat16") == PrefillCompute::kBfloat16, "");
  EXPECT(RefusalOf([] { ParsePrefillCompute("float8"); }) ==
             "prefill_compute is \"float8\": choose one of \"float32\", \"bfloat16\", \"int8\".",
         "");
}

DELTALLM_TEST(prefill, threads_do_not_change_a_bit) {
  Random random;
  for (int trial = 0; trial < Trials(12); ++trial) {
    PrefillCase c = RandomPrefillCase(random, trial % 2 == 1);
    const Kernels& kernels = *AvailableKernels().back();
    for (const PrefillCompute compute : ComputesOf(kernels)) {
      c.rules.prefill_compute = compute;
      const std::vector<float> serial = c.Run(kernels, Serial());
      const std::vector<float> threaded = c.Run(kernels, ThreadPerTask());
      EXPECT(std::memcmp(serial.data(), threaded.data(), serial.size() * sizeof(float)) == 0, c.Describe());
    }
  }
}

}  // namespace
}  // namespace deltallm::test
