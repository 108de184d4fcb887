// The packed kernels of every set. Where no float sum is involved the results are those of the scalar set bit by bit;
// the scalar set itself is held against the definition in double precision.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "tests/packed_bytes.h"

namespace deltallm::test {
namespace {

constexpr float kUntouched = 12345.0f;
constexpr uint16_t kHalfOne = 0x3C00;
constexpr uint16_t kHalfNaN = 0x7E00;
const std::initializer_list<int64_t> kHeadSizes = {4, 5, 12, 64, 72, 80, 96, 100, 128, 256};

bool SameBits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

/// Probabilities as a softmax leaves them: many small, some 0.
std::vector<float> RandomWeights(Random& random, int64_t count) {
  std::vector<float> weights = random.Normals(count);
  for (float& weight : weights) weight = random.Int(0, 9) == 0 ? 0.0f : std::exp(4.0f * weight - 12.0f);
  return weights;
}

const Kernels& Scalar() { return *AvailableKernels().front(); }

DELTALLM_TEST(packed_kernels, every_set_has_them_and_the_scalar_one_comes_first) {
  for (const Kernels* kernels : AvailableKernels()) EXPECT(kernels->packed != nullptr, kernels->isa);
  EXPECT(Scalar().packed == &kScalarPackedKernels, Scalar().isa);
}

DELTALLM_TEST(packed_kernels, a_quantized_query_is_near_the_query_and_the_same_everywhere) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      const int64_t heads = random.Int(1, 7);
      const int64_t stride = size + random.Int(0, 3);
      const std::vector<float> rows = random.Normals(heads * stride);
      const Query expected(Scalar(), rows, stride, heads, size);
      const Query found(*kernels, rows, stride, heads, size);
      EXPECT(found.value == expected.value && found.high == expected.high && found.low == expected.low, kernels->isa,
             " planes, size ", size);
      EXPECT(found.step == expected.step && found.sum == expected.sum, kernels->isa, " steps and sums, size ", size);
      for (int64_t h = 0; h < heads; ++h) {
        int32_t sum = 0;
        for (int64_t c = 0; c < found.stride; ++c) {
          const auto at = static_cast<size_t>(h * found.stride + c);
          const int32_t value = found.value[at];
          const float x = c < size ? rows[static_cast<size_t>(h * stride + c)] : 0.0f;
          sum += value;
          EXPECT(std::abs(value) <= 16256 && value == 128 * found.high[at] + found.low[at], kernels->isa, " ", value);
          // Half a step, and what float32 loses in 16256 steps.
          EXPECT(std::fabs(x - double{found.step[static_cast<size_t>(h)]} * value) <=
                     0.505 * found.step[static_cast<size_t>(h)],
                 kernels->isa, " size ", size, " channel ", c);
        }
        EXPECT(sum == found.sum[static_cast<size_t>(h)], kernels->isa, " sum of head ", h);
      }
    }
  }
}

DELTALLM_TEST(packed_kernels, queries_of_zeros_and_of_no_numbers_have_no_codes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const Kernels* kernels : AvailableKernels()) {
    for (const float odd : {0.0f, -0.0f, 1e-40f, kInfinity, -kInfinity, kNaN, -kNaN}) {
      std::vector<float> row(21, std::fabs(odd) < 1.0f ? 0.0f : 0.5f);
      row[17] = odd;
      const Query query(*kernels, row, 21, 1, 21);
      EXPECT(std::all_of(query.value.begin(), query.value.end(), [](int16_t v) { return v == 0; }), kernels->isa, odd);
      EXPECT(query.sum[0] == 0, kernels->isa, " ", odd);
      EXPECT(std::fabs(odd) < 1.0f ? query.step[0] == 0.0f : std::isnan(query.step[0]), kernels->isa, " ", odd,
             " gives ", query.step[0]);
    }
  }
}

void CheckScoreTiles(const Kernels& kernels, Random& random, int64_t heads, int64_t count, int64_t size) {
  const int64_t padded = Padded(size);
  GuardedBytes tiles(random, count * kTileRows * (padded + 4));
  SetTileScales(random, tiles, count, padded, random.Int(0, 1) == 0);
  const std::vector<float> rows = random.Normals(heads * size);
  Query query(Scalar(), rows, size, heads, size);
  const int64_t stride = count * kTileRows + random.Int(1, 5);
  std::vector<float> expected(static_cast<size_t>(heads * stride), kUntouched);
  std::vector<float> found = expected;
  Scalar().packed->score_tiles(query.Get(), heads, tiles.data(), count, size, expected.data(), stride, {});
  kernels.packed->score_tiles(query.Get(), heads, tiles.data(), count, size, found.data(), stride, {});
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t j = 0; j < stride; ++j) {
      const auto at = static_cast<size_t>(h * stride + j);
      EXPECT(SameBits(found[at], expected[at]), kernels.isa, " heads ", heads, " tiles ", count, " size ", size, " at ",
             h, ",", j, ": ", found[at], " for ", expected[at]);
      if (j >= count * kTileRows || &kernels != &Scalar()) continue;
      const int64_t tile = j / kTileRows * kTileRows * (padded + 4);
      int64_t sum = 0;
      for (int64_t c = 0; c < size; ++c) {
        const int64_t byte = tile + (c / 4 * kTileRows + j % kTileRows) * 4 + c % 4;
        sum += query.value[static_cast<size_t>(h * query.stride + c)] * (int64_t{tiles.data()[byte]} - 128);
      }
      const double exact = double{query.step[static_cast<size_t>(h)]} *
                           tiles.HalfAt(tile + kTileRows * padded + 2 * (j % kTileRows)) * static_cast<double>(sum);
      EXPECT(std::fabs(found[at] - exact) <= std::ldexp(std::fabs(exact), -22), "size ", size, ": ", found[at], " for ",
             exact);
    }
  }
}

DELTALLM_TEST(packed_kernels, scores_of_tiles_are_exact) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (int64_t heads = 1; heads <= 7; ++heads) CheckScoreTiles(*kernels, random, heads, random.Int(1, 19), size);
    }
    for (int64_t count = 0; count <= 8; ++count) {
      CheckScoreTiles(*kernels, random, random.Int(1, 9), count, random.Pick(kHeadSizes));
    }
    for (const int64_t heads : {3, 5}) CheckScoreTiles(*kernels, random, heads, 2, kMostPackedHeadSize);
  }
}

DELTALLM_TEST(packed_kernels, the_largest_sums_of_tiles_do_not_overflow) {
  constexpr int64_t kSize = kMostPackedHeadSize;
  for (const Kernels* kernels : AvailableKernels()) {
    Random random;
    for (int64_t heads = 1; heads <= 5; ++heads) {
      for (const float sign : {1.0f, -1.0f}) {
        for (const uint8_t stored : {uint8_t{0}, uint8_t{255}}) {
          GuardedBytes keys(random, kTileRows * (kSize + 4));
          std::fill_n(keys.data(), kTileRows * kSize, stored);
          SetTileScales(random, keys, 1, kSize, true);
          const std::vector<float> rows(static_cast<size_t>(heads * kSize), sign * 16256.0f);
          Query query(*kernels, rows, kSize, heads, kSize);
          std::vector<float> scores(static_cast<size_t>(heads * kTileRows));
          kernels->packed->score_tiles(query.Get(), heads, keys.data(), 1, kSize, scores.data(), kTileRows, {});
          const float expected = sign * 16256.0f * static_cast<float>(stored - 128) * 1024.0f;
          for (const float score : scores) EXPECT(score == expected, kernels->isa, " ", score, " for ", expected);
        }
      }
      for (const int8_t code : {int8_t{-128}, int8_t{127}}) {
        GuardedBytes values(random, 8 * kTileRows * (12 + 4));
        std::fill_n(values.data(), 8 * kTileRows * (12 + 4), static_cast<uint8_t>(code));
        SetTileScales(random, values, 8, 12, true);
        const std::vector<float> weights(static_cast<size_t>(heads * 128), 16383.0f);
        std::vector<float> sum(static_cast<size_t>(heads * 12), 0.0f);
        kernels->packed->add_tiles(weights.data(), 128, heads, values.data(), 8, 12, sum.data(), 12, {});
        const float expected = 16383.0f * static_cast<float>(code) * 128.0f;
        for (const float x : sum) EXPECT(x == expected, kernels->isa, " ", x, " for ", expected);
      }
    }
  }
}

void CheckAddTiles(const Kernels& kernels, Random& random, int64_t heads, int64_t count, int64_t size) {
  const int64_t padded = Padded(size);
  GuardedBytes tiles(random, count * kTileRows * (padded + 4));
  SetTileScales(random, tiles, count, padded, random.Int(0, 1) == 0);
  const int64_t rows = count * kTileRows;
  const int64_t weight_stride = rows + random.Int(0, 3);
  const int64_t sum_stride = size + random.Int(1, 3);
  const std::vector<float> weights = RandomWeights(random, heads * weight_stride);
  for (const bool from_zero : {true, false}) {
    std::vector<float> before = random.Normals(heads * sum_stride);
    if (from_zero) std::fill(before.begin(), before.end(), 0.0f);
    std::vector<float> expected = before;
    std::vector<float> found = before;
    Scalar().packed->add_tiles(weights.data(), weight_stride, heads, tiles.data(), count, size, expected.data(),
                               sum_stride, {});
    kernels.packed->add_tiles(weights.data(), weight_stride, heads, tiles.data(), count, size, found.data(), sum_stride,
                              {});
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t c = 0; c < sum_stride; ++c) {
        const auto at = static_cast<size_t>(h * sum_stride + c);
        if (c >= size) {
          EXPECT(SameBits(found[at], before[at]), kernels.isa, " wrote outside at ", h, ",", c);
          continue;
        }
        // Added to 0 the product is rounded once, with one operation or two.
        const float slack = from_zero ? 0.0f : std::ldexp(std::fabs(before[at]) + std::fabs(expected[at]), -22);
        EXPECT(std::fabs(found[at] - expected[at]) <= slack, kernels.isa, " heads ", heads, " tiles ", count, " size ",
               size, " at ", h, ",", c, ": ", found[at], " for ", expected[at]);
        if (&kernels != &Scalar()) continue;
        double exact = before[at];
        double magnitude = std::fabs(exact);
        double largest = 0.0;
        double codes = 0.0;
        for (int64_t j = 0; j < rows; ++j) {
          const int64_t tile = j / kTileRows * kTileRows * (padded + 4);
          const double p = double{weights[static_cast<size_t>(h * weight_stride + j)]} *
                           tiles.HalfAt(tile + kTileRows * padded + 2 * (j % kTileRows));
          const double code = static_cast<int8_t>(tiles.data()[tile + (j % kTileRows / 4 * padded + c) * 4 + j % 4]);
          exact += p * code;
          magnitude += std::fabs(p * code);
          largest = std::max(largest, p);
          codes += std::fabs(code);
        }
        EXPECT(std::fabs(found[at] - exact) <= 0.505 * largest / 16383 * codes + std::ldexp(magnitude, -21), "size ",
               size, ": ", found[at], " for ", exact);
      }
    }
  }
}

DELTALLM_TEST(packed_kernels, sums_of_value_tiles_are_exact_in_their_integers) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (int64_t heads = 1; heads <= 7; ++heads) CheckAddTiles(*kernels, random, heads, random.Int(1, 8), size);
    }
    for (int64_t count = 0; count <= 8; ++count) {
      CheckAddTiles(*kernels, random, random.Int(1, 9), count, random.Pick(kHeadSizes));
    }
  }
}

void CheckScoreBlock(const Kernels& kernels, Random& random, int64_t heads, int64_t size) {
  const int64_t padded = Padded(size);
  const int64_t scales = kBlockRows / 2 * padded;
  const int64_t query_stride = size + random.Int(0, 3);
  const int64_t stride = kBlockRows + random.Int(1, 3);
  const std::vector<float> query = random.Normals(heads * query_stride);
  for (const bool no_zeros : {true, false}) {
    GuardedBytes block(random, scales + 4 * padded + 2 * kBlockRows);
    SetBlockScales(random, block, padded, padded, size);
    if (no_zeros) std::fill_n(block.data() + scales + 2 * padded, 2 * padded, uint8_t{0});
    std::vector<float> expected(static_cast<size_t>(heads * stride), kUntouched);
    std::vector<float> found = expected;
    Scalar().packed->score_block(query.data(), query_stride, heads, block.data(), size, expected.data(), stride, {});
    kernels.packed->score_block(query.data(), query_stride, heads, block.data(), size, found.data(), stride, {});
    for (int64_t h = 0; h < heads; ++h) {
      double magnitude = 0.0;
      double largest = 0.0;
      double start = 0.0;
      for (int64_t c = 0; c < size; ++c) {
        const double q = query[static_cast<size_t>(h * query_stride + c)];
        start += q * block.HalfAt(scales + 2 * (padded + c));
        magnitude += std::fabs(q * block.HalfAt(scales + 2 * (padded + c)));
        largest = std::max(largest, std::fabs(q * block.HalfAt(scales + 2 * c)));
      }
      for (int64_t j = 0; j < stride; ++j) {
        const auto at = static_cast<size_t>(h * stride + j);
        if (j >= kBlockRows) {
          EXPECT(found[at] == kUntouched, kernels.isa, " wrote outside at ", h, ",", j);
          continue;
        }
        const double slack =
            no_zeros ? 0.0 : std::ldexp(static_cast<double>(size + 2) * (magnitude + std::fabs(expected[at])), -23);
        EXPECT(std::fabs(found[at] - expected[at]) <= slack, kernels.isa, " heads ", heads, " size ", size, " at ", h,
               ",", j, ": ", found[at], " for ", expected[at]);
        if (&kernels != &Scalar()) continue;
        double exact = start;
        double codes = 0.0;
        for (int64_t c = 0; c < size; ++c) {
          const uint8_t pair = block.data()[((j / 32 * (padded / 4) + c / 4) * 16 + j % 16) * 4 + c % 4];
          const int code = j % 32 < 16 ? pair & 15 : pair >> 4;
          exact += double{query[static_cast<size_t>(h * query_stride + c)]} * block.HalfAt(scales + 2 * c) * code;
          codes += code;
        }
        EXPECT(std::fabs(found[at] - exact) <= 0.501 * largest / 127 * codes + slack + std::ldexp(magnitude, -21),
               "size ", size, ": ", found[at], " for ", exact);
      }
    }
  }
}

DELTALLM_TEST(packed_kernels, scores_of_blocks_are_exact_in_their_integers) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (int64_t heads = 1; heads <= 7; ++heads) CheckScoreBlock(*kernels, random, heads, size);
    }
    CheckScoreBlock(*kernels, random, 5, kMostPackedHeadSize);
  }
}

void CheckAddBlock(const Kernels& kernels, Random& random, int64_t heads, int64_t size) {
  const int64_t padded = Padded(size);
  const int64_t scales = kBlockRows / 2 * padded;
  const int64_t weight_stride = kBlockRows + random.Int(0, 3);
  const int64_t sum_stride = size + random.Int(1, 3);
  const std::vector<float> weights = RandomWeights(random, heads * weight_stride);
  for (const bool from_zero : {true, false}) {
    GuardedBytes block(random, scales + 4 * kBlockRows);
    SetBlockScales(random, block, padded, kBlockRows, kBlockRows);
    std::vector<float> before = random.Normals(heads * sum_stride);
    if (from_zero) {
      std::fill_n(block.data() + scales + 2 * kBlockRows, 2 * kBlockRows, uint8_t{0});
      std::fill(before.begin(), before.end(), 0.0f);
    }
    std::vector<float> expected = before;
    std::vector<float> found = before;
    Scalar().packed->add_block(weights.data(), weight_stride, heads, block.data(), size, expected.data(), sum_stride,
                               {});
    kernels.packed->add_block(weights.data(), weight_stride, heads, block.data(), size, found.data(), sum_stride, {});
    for (int64_t h = 0; h < heads; ++h) {
      double start = 0.0;
      double magnitude = 0.0;
      double largest = 0.0;
      for (int64_t j = 0; j < kBlockRows; ++j) {
        const double weight = weights[static_cast<size_t>(h * weight_stride + j)];
        start += weight * block.HalfAt(scales + 2 * (kBlockRows + j));
        magnitude += std::fabs(weight * block.HalfAt(scales + 2 * (kBlockRows + j)));
        largest = std::max(largest, weight * block.HalfAt(scales + 2 * j));
      }
      for (int64_t c = 0; c < sum_stride; ++c) {
        const auto at = static_cast<size_t>(h * sum_stride + c);
        if (c >= size) {
          EXPECT(SameBits(found[at], before[at]), kernels.isa, " wrote outside at ", h, ",", c);
          continue;
        }
        const double slack =
            from_zero ? 0.0 : std::ldexp(130 * (magnitude + std::fabs(expected[at]) + std::fabs(before[at])), -23);
        EXPECT(std::fabs(found[at] - expected[at]) <= slack, kernels.isa, " heads ", heads, " size ", size, " at ", h,
               ",", c, ": ", found[at], " for ", expected[at]);
        if (&kernels != &Scalar()) continue;
        double exact = before[at] + start;
        double codes = 0.0;
        for (int64_t j = 0; j < kBlockRows; ++j) {
          const uint8_t pair = block.data()[(j / 8 * padded + c) * 4 + j % 4];
          const int code = j % 8 < 4 ? pair & 15 : pair >> 4;
          exact += double{weights[static_cast<size_t>(h * weight_stride + j)]} * block.HalfAt(scales + 2 * j) * code;
          codes += code;
        }
        EXPECT(
            std::fabs(found[at] - exact) <= 0.501 * largest / 255 * codes + slack + std::ldexp(std::fabs(exact), -21),
            "size ", size, ": ", found[at], " for ", exact);
      }
    }
  }
}

DELTALLM_TEST(packed_kernels, sums_of_value_blocks_are_exact_in_their_integers) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (const int64_t size : kHeadSizes) {
      for (int64_t heads = 1; heads <= 7; ++heads) CheckAddBlock(*kernels, random, heads, size);
    }
  }
}

DELTALLM_TEST(packed_kernels, the_largest_sums_of_blocks_do_not_overflow) {
  constexpr int64_t kSize = kMostPackedHeadSize;
  constexpr int64_t kScales = kBlockRows / 2 * kSize;
  for (const Kernels* kernels : AvailableKernels()) {
    Random random;
    GuardedBytes keys(random, kScales + 4 * kSize + 2 * kBlockRows);
    GuardedBytes values(random, kScales + 4 * kBlockRows);
    for (GuardedBytes* block : {&keys, &values}) std::fill_n(block->data(), kScales, uint8_t{0xFF});
    for (int64_t i = 0; i < 2 * kSize; ++i) keys.SetHalf(kScales + 2 * i, i < kSize ? kHalfOne : 0);
    for (int64_t i = 0; i < 2 * kBlockRows; ++i) values.SetHalf(kScales + 2 * i, i < kBlockRows ? kHalfOne : 0);
    for (int64_t heads = 1; heads <= 5; ++heads) {
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> query(static_cast<size_t>(heads * kSize), sign * 127.0f);
        std::vector<float> scores(static_cast<size_t>(heads * kBlockRows));
        kernels->packed->score_block(query.data(), kSize, heads, keys.data(), kSize, scores.data(), kBlockRows, {});
        for (const float score : scores) EXPECT(score == sign * 127.0f * 15.0f * kSize, kernels->isa, " ", score);
      }
      const std::vector<float> weights(static_cast<size_t>(heads * kBlockRows), 255.0f);
      std::vector<float> sum(static_cast<size_t>(heads * kSize), 0.0f);
      kernels->packed->add_block(weights.data(), kBlockRows, heads, values.data(), kSize, sum.data(), kSize, {});
      for (const float x : sum) EXPECT(x == 255.0f * 15.0f * kBlockRows, kernels->isa, " ", x);
    }
  }
}

DELTALLM_TEST(packed_kernels, a_scale_that_is_no_number_spoils_what_it_touches_and_nothing_else) {
  constexpr int64_t kSize = 20;
  constexpr int64_t kHeads = 3;
  for (const Kernels* kernels : AvailableKernels()) {
    Random random;
    const std::vector<float> query = random.Normals(kHeads * kSize);
    const std::vector<float> weights(kHeads * kBlockRows, 0.25f);
    std::vector<float> scores(kHeads * kBlockRows);

    GuardedBytes tiles(random, 2 * kTileRows * (kSize + 4));
    SetTileScales(random, tiles, 2, kSize, false);
    tiles.SetHalf(kTileRows * kSize + 2 * 5, kHalfNaN);
    Query codes(*kernels, query, kSize, kHeads, kSize);
    kernels->packed->score_tiles(codes.Get(), kHeads, tiles.data(), 2, kSize, scores.data(), kBlockRows, {});
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t j = 0; j < 2 * kTileRows; ++j) {
        EXPECT(std::isnan(scores[static_cast<size_t>(h * kBlockRows + j)]) == (j == 5), kernels->isa, " row ", j);
      }
    }
    for (const uint16_t odd : {kHalfNaN, uint16_t{0xFE00}, uint16_t{0x7C00}}) {
      tiles.SetHalf(kTileRows * kSize + 2 * 5, odd);
      std::vector<float> sum(kHeads * kSize, 1.0f);
      kernels->packed->add_tiles(weights.data(), kBlockRows, kHeads, tiles.data(), 2, kSize, sum.data(), kSize, {});
      EXPECT(std::all_of(sum.begin(), sum.end(), [](float x) { return std::isnan(x); }), kernels->isa, " tiles");
    }

    const int64_t scales = kBlockRows / 2 * kSize;
    GuardedBytes keys(random, scales + 4 * kSize + 2 * kBlockRows);
    GuardedBytes values(random, scales + 4 * kBlockRows);
    for (const int64_t second : {0, 1}) {
      SetBlockScales(random, keys, kSize, kSize, kSize);
      SetBlockScales(random, values, kSize, kBlockRows, kBlockRows);
      keys.SetHalf(scales + 2 * (second * kSize + 7), kHalfNaN);
      values.SetHalf(scales + 2 * (second * kBlockRows + 70), kHalfNaN);
      kernels->packed->score_block(query.data(), kSize, kHeads, keys.data(), kSize, scores.data(), kBlockRows, {});
      EXPECT(std::all_of(scores.begin(), scores.end(), [](float x) { return std::isnan(x); }), kernels->isa, " keys");
      std::vector<float> sum(kHeads * kSize, 1.0f);
      kernels->packed->add_block(weights.data(), kBlockRows, kHeads, values.data(), kSize, sum.data(), kSize, {});
      EXPECT(std::all_of(sum.begin(), sum.end(), [](float x) { return std::isnan(x); }), kernels->isa, " values");
    }
  }
}

DELTALLM_TEST(packed_kernels, weights_of_zero_add_nothing) {
  constexpr int64_t kSize = 36;
  for (const Kernels* kernels : AvailableKernels()) {
    Random random;
    const std::vector<float> weights(2 * kBlockRows, 0.0f);
    GuardedBytes tiles(random, 3 * kTileRows * (kSize + 4));
    SetTileScales(random, tiles, 3, kSize, false);
    GuardedBytes block(random, kBlockRows / 2 * kSize + 4 * kBlockRows);
    SetBlockScales(random, block, kSize, kBlockRows, kBlockRows);
    const std::vector<float> before = random.Normals(2 * kSize);
    std::vector<float> sum = before;
    kernels->packed->add_tiles(weights.data(), kBlockRows, 2, tiles.data(), 3, kSize, sum.data(), kSize, {});
    kernels->packed->add_block(weights.data(), kBlockRows, 2, block.data(), kSize, sum.data(), kSize, {});
    for (size_t i = 0; i < sum.size(); ++i) EXPECT(SameBits(sum[i], before[i]), kernels->isa, " ", i);
  }
}

}  // namespace
}  // namespace deltallm::test
