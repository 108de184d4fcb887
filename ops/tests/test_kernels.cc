// Every kernel set against the scalar one: sizes around the vector length, primes, odd strides, and nothing written
// outside. A float32 sum of n terms may differ by its order: the bound is n·2^-23 times the sum of magnitudes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kUntouched = 12345.0f;
// Above 96, 128 and 256 channels one instruction set or the other takes a row in several tiles.
const std::initializer_list<int64_t> kHeadSizes = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,  31,
                                                   32, 33, 64, 67, 80, 96, 112, 128, 200, 256, 272, 301};
const std::initializer_list<int64_t> kHeads = {1, 2, 3, 4, 5, 7, 8, 9};
const std::initializer_list<int64_t> kRows = {0, 1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 31, 33, 97};

double Bound(int64_t terms, double magnitude) {
  return static_cast<double>(terms + 2) * std::ldexp(1.0, -23) * magnitude + 1e-37;
}

std::vector<uint16_t> ToHalf(const std::vector<float>& values) {
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(FloatToHalf(value));
  return halves;
}

void CheckScoreRows(const Kernels& kernels, Random& random, int64_t heads, int64_t rows, int64_t size) {
  const int64_t q_stride = size + random.Int(0, 3);
  const int64_t k_stride = size + random.Int(0, 5);
  const int64_t s_stride = rows + random.Int(1, 3);
  const std::vector<float> query = random.Normals(heads * q_stride);
  std::vector<float> key = random.Normals(rows * k_stride + 1);
  const std::vector<uint16_t> half = ToHalf(key);
  for (const bool use_half : {false, true}) {
    std::vector<float> scores(static_cast<size_t>(heads * s_stride), kUntouched);
    if (use_half) {
      kernels.score_rows_f16(query.data(), q_stride, heads, {half.data(), k_stride}, rows, size, scores.data(),
                             s_stride);
    } else {
      kernels.score_rows_f32(query.data(), q_stride, heads, {key.data(), k_stride}, rows, size, scores.data(),
                             s_stride);
    }
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t j = 0; j < s_stride; ++j) {
        const float found = scores[static_cast<size_t>(h * s_stride + j)];
        if (j >= rows) {
          EXPECT(found == kUntouched, kernels.isa, " wrote outside at ", h, ",", j);
          continue;
        }
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t c = 0; c < size; ++c) {
          const auto at = static_cast<size_t>(j * k_stride + c);
          const double k = use_half ? HalfToFloat(half[at]) : key[at];
          const double term = double{query[static_cast<size_t>(h * q_stride + c)]} * k;
          sum += term;
          magnitude += std::fabs(term);
        }
        EXPECT(std::fabs(found - sum) <= Bound(size, magnitude), kernels.isa, " heads ", heads, " rows ", rows,
               " size ", size, " half ", use_half, ": ", found, " for ", sum);
      }
    }
  }
}

void CheckAddRows(const Kernels& kernels, Random& random, int64_t heads, int64_t rows, int64_t size) {
  const int64_t w_stride = rows + random.Int(0, 3);
  const int64_t v_stride = size + random.Int(0, 5);
  const int64_t s_stride = size + random.Int(1, 3);
  const std::vector<float> weights = random.Normals(heads * w_stride + 1);
  const std::vector<float> value = random.Normals(rows * v_stride + 1);
  const std::vector<uint16_t> half = ToHalf(value);
  for (const bool use_half : {false, true}) {
    const std::vector<float> before = random.Normals(heads * s_stride);
    std::vector<float> sum = before;
    if (use_half) {
      kernels.add_rows_f16(weights.data(), w_stride, heads, {half.data(), v_stride}, rows, size, sum.data(), s_stride);
    } else {
      kernels.add_rows_f32(weights.data(), w_stride, heads, {value.data(), v_stride}, rows, size, sum.data(), s_stride);
    }
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < s_stride; ++c) {
        const auto at = static_cast<size_t>(h * s_stride + c);
        if (c >= size) {
          EXPECT(sum[at] == before[at], kernels.isa, " wrote outside at ", h, ",", c);
          continue;
        }
        double expected = before[at];
        double magnitude = std::fabs(expected);
        for (int64_t j = 0; j < rows; ++j) {
          const auto v_at = static_cast<size_t>(j * v_stride + c);
          const double v = use_half ? HalfToFloat(half[v_at]) : value[v_at];
          const double term = double{weights[static_cast<size_t>(h * w_stride + j)]} * v;
          expected += term;
          magnitude += std::fabs(term);
        }
        EXPECT(std::fabs(sum[at] - expected) <= Bound(rows, magnitude), kernels.isa, " heads ", heads, " rows ", rows,
               " size ", size, " half ", use_half, ": ", sum[at], " for ", expected);
      }
    }
  }
}

DELTALLM_TEST(kernels, scores_agree_with_a_double_sum) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (const int64_t heads : kHeads) CheckScoreRows(*kernels, random, heads, random.Pick(kRows), size);
    }
    for (const int64_t rows : kRows)
      CheckScoreRows(*kernels, random, random.Pick(kHeads), rows, random.Pick(kHeadSizes));
  }
}

DELTALLM_TEST(kernels, sums_of_values_agree_with_a_double_sum) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (const int64_t heads : kHeads) CheckAddRows(*kernels, random, heads, random.Pick(kRows), size);
    }
    for (const int64_t rows : kRows) CheckAddRows(*kernels, random, random.Pick(kHeads), rows, random.Pick(kHeadSizes));
  }
}

DELTALLM_TEST(kernels, exp2_is_accurate_to_two_units_and_sums_what_it_wrote) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (int64_t n = 0; n <= 67; ++n) {
      std::vector<float> x = random.Normals(n);
      for (float& value : x) value = -std::fabs(value) * static_cast<float>(random.Int(0, 30));
      if (n > 2) x[1] = -kInfinity;
      const float offset = 0.25f;
      for (float& value : x) value += offset;
      std::vector<float> result = x;
      result.push_back(kUntouched);
      const float sum = kernels->exp2_and_sum(result.data(), n, offset);
      EXPECT(result.back() == kUntouched, kernels->isa, " wrote behind its end");
      double expected_sum = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const double expected = std::exp2(double{x[at] - offset});
        // Below the smallest normal float32 the kernels may give 0.
        EXPECT(std::fabs(result[at] - expected) <= 2.4e-7 * expected + 1.2e-38, kernels->isa, " 2^", x[at] - offset);
        expected_sum += result[at];
      }
      if (n > 2) EXPECT(result[1] == 0.0f, kernels->isa, " 2^-inf is ", result[1]);
      EXPECT(std::fabs(sum - expected_sum) <= Bound(n, expected_sum), kernels->isa, " sum of ", n);
    }
  }
}

DELTALLM_TEST(kernels, exp2_keeps_nan) {
  for (const Kernels* kernels : AvailableKernels()) {
    for (const size_t at : {size_t{0}, size_t{16}, size_t{18}}) {
      std::vector<float> x(19, -1.0f);
      x[at] = std::numeric_limits<float>::quiet_NaN();
      EXPECT(std::isnan(kernels->exp2_and_sum(x.data(), 19, 0.0f)), kernels->isa, " ", at);
      EXPECT(std::isnan(x[at]), kernels->isa, " ", at);
    }
  }
}

DELTALLM_TEST(kernels, tokens_multiply_and_sum) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (int64_t n = 0; n <= 80; n += 16) {
      const std::vector<float> x = random.Normals(n);
      std::vector<uint16_t> tags;
      for (int64_t i = 0; i < n; ++i) tags.push_back(static_cast<uint16_t>(random.Int(0, 0xffff)));
      std::vector<float> result = x;
      result.push_back(kUntouched);
      const float sum = kernels->multiply_tokens_and_sum(result.data(), tags.data(), n);
      EXPECT(result.back() == kUntouched, kernels->isa, " wrote behind its end");
      double expected = 0.0;
      double magnitude = 0.0;
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT(result[i] == x[i] * static_cast<float>(tags[i] % 0x8000), kernels->isa, " ", i);
        expected += result[i];
        magnitude += std::fabs(result[i]);
      }
      EXPECT(std::fabs(sum - expected) <= Bound(n, magnitude), kernels->isa, " sum of ", n);
    }
  }
}

DELTALLM_TEST(kernels, maximum_and_scale) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    EXPECT(kernels->maximum(nullptr, 0) == -kInfinity, kernels->isa);
    for (int64_t n = 1; n <= 67; ++n) {
      std::vector<float> x = random.Normals(n);
      EXPECT(kernels->maximum(x.data(), n) == *std::max_element(x.begin(), x.end()), kernels->isa, " ", n);
      std::vector<float> scaled = x;
      scaled.push_back(kUntouched);
      kernels->scale(scaled.data(), n, 0.3f);
      for (size_t i = 0; i < x.size(); ++i) EXPECT(scaled[i] == x[i] * 0.3f, kernels->isa, " ", i);
      EXPECT(scaled.back() == kUntouched, kernels->isa, " wrote behind its end");
    }
  }
}

DELTALLM_TEST(kernels, softcap_is_accurate_everywhere) {
  for (const Kernels* kernels : AvailableKernels()) {
    for (const float cap : {0.5f, 30.0f}) {
      std::vector<float> x;
      for (float v = -12.0f; v <= 12.0f; v += 0.0173f) x.push_back(v * cap);
      x.insert(x.end(), {0.0f, 1e-6f * cap, -1e4f * cap, 1e30f});
      std::vector<float> result = x;
      kernels->softcap(result.data(), static_cast<int64_t>(x.size()), cap);
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = cap * std::tanh(double{x[i]} / cap);
        EXPECT(std::fabs(result[i] - expected) <= 4e-7 * std::fabs(expected), kernels->isa, " ", x[i]);
      }
    }
  }
}

}  // namespace
}  // namespace deltallm::test
