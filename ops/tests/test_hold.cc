// The hold transform and the rotary against plain double loops over the definitions.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/hold.h"
#include "kernels/rotary.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

DELTALLM_TEST(hold, elements_follow_the_definition_over_a_sequence) {
  Random random;
  for (const int64_t channels : {1, 7, 16, 33, 64}) {
    const std::vector<float> threshold = random.Normals(channels);
    for (const int64_t step : {0, 1}) {
      std::vector<float> previous = random.Normals(channels);
      std::vector<float> expected = previous;
      int held = 0;
      for (int token = 0; token < 50; ++token) {
        std::vector<float> key = random.Normals(channels);
        if (token % 7 == 3) key[0] = kNaN;
        std::vector<float> limit = threshold;
        for (float& value : limit) value = std::fabs(value);
        for (int64_t c = 0; c < channels; ++c) {
          const auto i = static_cast<size_t>(c);
          const float delta = key[i] - expected[i];
          const float theta = limit[step == 1 ? i : 0];
          if (delta <= theta && delta >= -theta) {
            ++held;
          } else {
            expected[i] = key[i];
          }
        }
        std::vector<float> result(static_cast<size_t>(channels));
        HoldElements(key.data(), previous.data(), channels, limit.data(), step, result.data());
        EXPECT(std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)) == 0, channels, " ", token);
        // In place gives the same.
        HoldElements(key.data(), previous.data(), channels, limit.data(), step, key.data());
        EXPECT(std::memcmp(result.data(), key.data(), result.size() * sizeof(float)) == 0, channels, " ", token);
        previous = result;
      }
      EXPECT(held > 0, "the test held nothing");
    }
  }
}

DELTALLM_TEST(hold, the_boundary_itself_is_held) {
  const float previous = 1.0f;
  const float key = 1.5f;
  for (const float theta : {0.5f, std::nextafter(0.5f, 0.0f)}) {
    float held = 0.0f;
    HoldElements(&key, &previous, 1, &theta, 0, &held);
    EXPECT(held == (theta == 0.5f ? previous : key), theta);
    const float weight = 2.0f;
    EXPECT(HoldsRow(&key, &previous, 1, 2 * theta, &weight, RowRule::kAbsolute) == (theta == 0.5f), theta);
  }
}

DELTALLM_TEST(hold, rows_follow_the_definition) {
  Random random;
  int held = 0;
  for (int trial = 0; trial < 500; ++trial) {
    const int64_t channels = random.Int(1, 40);
    const std::vector<float> previous = random.Normals(channels);
    std::vector<float> key = previous;
    for (float& value : key) value += 0.3f * random.Normal();
    const std::vector<float> weight = random.Normals(channels);
    const bool weighted = random.Int(0, 1) == 1;
    const RowRule rule = random.Int(0, 1) == 1 ? RowRule::kRelative : RowRule::kAbsolute;
    const auto threshold = static_cast<float>(random.Int(0, 100)) / 100.0f;
    double change = 0.0;
    double size = 0.0;
    for (size_t c = 0; c < key.size(); ++c) {
      const double w = weighted ? weight[c] : 1.0;
      change += std::pow(w * (double{key[c]} - double{previous[c]}), 2);
      size += std::pow(w * double{key[c]}, 2);
    }
    const double limit = double{threshold} * (rule == RowRule::kRelative ? std::sqrt(size) : 1.0);
    const bool expected = std::sqrt(change) <= limit;
    held += expected ? 1 : 0;
    EXPECT(HoldsRow(key.data(), previous.data(), channels, threshold, weighted ? weight.data() : nullptr, rule) ==
               expected,
           trial);
  }
  EXPECT(held > 50 && held < 450, "one-sided test: ", held, " of 500 held");
}

DELTALLM_TEST(hold, nan_is_never_held) {
  const float rows[3] = {1.0f, kNaN, 2.0f};
  const float same[3] = {1.0f, kNaN, 2.0f};
  const float huge = 1e30f;
  float held[3];
  HoldElements(rows, same, 3, &huge, 0, held);
  EXPECT(std::isnan(held[1]), held[1]);
  EXPECT(!HoldsRow(rows, same, 3, huge, nullptr, RowRule::kRelative), "relative");
  EXPECT(!HoldsRow(rows, same, 3, huge, nullptr, RowRule::kAbsolute), "absolute");
}

DELTALLM_TEST(hold, rotary_rounds_every_product_and_sum_on_its_own) {
  Random random;
  for (const bool interleaved : {false, true}) {
    for (const int64_t half : {1, 3, 8, 17}) {
      const int64_t channels = 2 * half + random.Int(0, 5);
      const std::vector<float> x = random.Normals(channels);
      const std::vector<float> cos = random.Normals(half);
      const std::vector<float> sin = random.Normals(half);
      std::vector<float> expected = x;
      for (int64_t c = 0; c < half; ++c) {
        const auto first = static_cast<size_t>(interleaved ? 2 * c : c);
        const auto second = static_cast<size_t>(interleaved ? 2 * c + 1 : c + half);
        const auto at = static_cast<size_t>(c);
        // volatile keeps the compiler from fusing the operations of this test.
        volatile float a = x[first] * cos[at];
        volatile float b = x[second] * sin[at];
        expected[first] = a - b;
        a = x[second] * cos[at];
        b = x[first] * sin[at];
        expected[second] = a + b;
      }
      std::vector<float> result(x.size());
      RotateRow(x.data(), channels, cos.data(), sin.data(), half, interleaved, result.data());
      EXPECT(std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)) == 0, half, interleaved);
      std::vector<float> in_place = x;
      RotateRow(in_place.data(), channels, cos.data(), sin.data(), half, interleaved, in_place.data());
      EXPECT(in_place == result, "in place ", half, interleaved);
    }
  }
}

}  // namespace
}  // namespace deltallm::test
