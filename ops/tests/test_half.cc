// Half precision: the software form against the definition, every kernel set against the software form.
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

/// The definition of binary16, without bit tricks.
double ValueOf(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

bool SameFloat(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

DELTALLM_TEST(half, every_half_is_its_value_and_comes_back) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const double value = ValueOf(half);
    EXPECT(SameFloat(HalfToFloat(half), static_cast<float>(value)), bits);
    if (std::isnan(value)) {
      EXPECT(std::isnan(HalfToFloat(FloatToHalf(HalfToFloat(half)))), bits);
    } else {
      EXPECT(FloatToHalf(HalfToFloat(half)) == half, bits);
    }
  }
}

DELTALLM_TEST(half, floats_round_to_the_nearest_half_and_ties_to_even) {
  // Between neighbouring positive halves: just below, at and just above the middle.
  for (uint16_t half = 0; half < 0x7BFF; ++half) {
    const auto middle = static_cast<float>((ValueOf(half) + ValueOf(static_cast<uint16_t>(half + 1))) / 2);
    const uint16_t even = (half & 1) == 0 ? half : static_cast<uint16_t>(half + 1);
    EXPECT(FloatToHalf(middle) == even, half);
    EXPECT(FloatToHalf(std::nextafter(middle, 0.0f)) == half, half);
    EXPECT(FloatToHalf(std::nextafter(middle, 1e9f)) == half + 1, half);
    EXPECT(FloatToHalf(-middle) == (even | 0x8000), half);
  }
  EXPECT(FloatToHalf(65519.996f) == 0x7BFF, "below the overflow limit");
  EXPECT(FloatToHalf(65520.0f) == 0x7C00, "overflow");
  EXPECT(FloatToHalf(INFINITY) == 0x7C00, "infinity");
}

DELTALLM_TEST(half, every_kernel_set_converts_alike) {
  Random random;
  std::vector<uint16_t> halves(0x10000);
  for (uint32_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> floats = random.Normals(4099);
  for (float& value : floats) value *= std::exp2(static_cast<float>(random.Int(-30, 20)));
  floats.insert(floats.end(), {INFINITY, -INFINITY, NAN, 65519.996f, 65520.0f, 0.0f, -0.0f, 1e-30f});
  for (const Kernels* kernels : AvailableKernels()) {
    std::vector<float> to_float(halves.size());
    kernels->half_to_float(halves.data(), static_cast<int64_t>(halves.size()), to_float.data());
    for (size_t i = 0; i < halves.size(); ++i) {
      EXPECT(SameFloat(to_float[i], HalfToFloat(halves[i])), kernels->isa, " ", i);
    }
    for (int64_t n = 0; n <= 37; ++n) {
      std::vector<uint16_t> to_half(static_cast<size_t>(n) + 1, 0xABCD);
      kernels->float_to_half(floats.data(), n, to_half.data());
      for (int64_t i = 0; i < n; ++i) {
        EXPECT(to_half[static_cast<size_t>(i)] == FloatToHalf(floats[static_cast<size_t>(i)]), kernels->isa, " ", i);
      }
      EXPECT(to_half.back() == 0xABCD, kernels->isa, " wrote behind its end");
    }
    std::vector<uint16_t> to_half(floats.size());
    kernels->float_to_half(floats.data(), static_cast<int64_t>(floats.size()), to_half.data());
    for (size_t i = 0; i < floats.size(); ++i) {
      const bool both_nan = std::isnan(floats[i]) && std::isnan(HalfToFloat(to_half[i]));
      EXPECT(both_nan || to_half[i] == FloatToHalf(floats[i]), kernels->isa, " ", floats[i]);
    }
  }
}

}  // namespace
}  // namespace deltallm::test
