// The prefill micro-kernels of every instruction set and arithmetic against double sums, at sizes around their lanes,
// panels and tiles. Results are surrounded by marks, so that a write outside of them is seen.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "kernels/half.h"
#include "kernels/prefill_kernels.h"
#include "core/attributes.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMark = -12345.0f;
constexpr int64_t kTileRows = PrefillArithmetic::kTileRows;
constexpr int64_t kRowStride = PrefillArithmetic::kMostColumns;
const std::initializer_list<int64_t> kHeadSizes = {1, 2, 3, 5, 15, 16, 17, 33, 63, 64, 65, 80, 96, 129, 200};

struct Arithmetic {
  const char* isa;
  PrefillCompute compute;
  const PrefillArithmetic* kernels;
  std::string Name() const { return Text(isa, " compute ", static_cast<int>(compute), " "); }
};

std::vector<Arithmetic> Arithmetics() {
  std::vector<Arithmetic> all;
  for (const Kernels* set : AvailableKernels()) {
    const PrefillKernels& prefill = *set->prefill;
    all.push_back({set->isa, PrefillCompute::kFloat32, prefill.float32});
    if (prefill.bfloat16 != nullptr) all.push_back({set->isa, PrefillCompute::kBfloat16, prefill.bfloat16});
    if (prefill.int8 != nullptr) all.push_back({set->isa, PrefillCompute::kInt8, prefill.int8});
  }
  return all;
}

/// 64-byte aligned memory with a mark behind it.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : bytes_(bytes),
        data_(static_cast<char*>(::operator new (static_cast<size_t>(bytes) + 64, std::align_val_t{64}))) {
    std::fill_n(data_, bytes + 64, char{0x7B});
  }
  ~Buffer() { ::operator delete (data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() { return data_; }
  float* floats() { return reinterpret_cast<float*>(data_); }
  bool Untouched() const {
    return std::all_of(data_ + bytes_, data_ + bytes_ + 64, [](char c) { return c == 0x7B; });
  }

 private:
  int64_t bytes_;
  char* data_;
};

size_t At(int64_t i) { return static_cast<size_t>(i); }

/// What rounding to bfloat16 may change, relative to the number: half a unit of 8 significant bits.
constexpr double kBfloat16Error = 0x1p-8;

void CheckScores(const Arithmetic& a, Random& random, int64_t size, int64_t rows, int64_t keys, bool half) {
  const std::vector<float> query = random.Normals(rows * size);
  std::vector<float> key = random.Normals(keys * size);
  std::vector<uint16_t> half_key(key.size());
  for (size_t i = 0; i < key.size(); ++i) half_key[i] = FloatToHalf(key[i]);
  if (half) std::transform(half_key.begin(), half_key.end(), key.begin(), HalfToFloat);
  const int64_t panel_keys = a.kernels->panel_keys;
  const int64_t panels = (keys + panel_keys - 1) / panel_keys;
  Buffer tile(a.kernels->query_tile_bytes(size));
  Buffer panel(panels * a.kernels->key_panel_bytes(size));
  a.kernels->pack_query(query.data(), rows, size, tile.data());
  std::vector<const void*> sources;
  for (int64_t j = 0; j < keys; ++j) {
    sources.push_back(half ? static_cast<const void*>(&half_key[At(j * size)]) : &key[At(j * size)]);
  }
  for (int64_t j = 0; j < keys; j += panel_keys) {
    a.kernels->pack_keys(sources.data() + j, half ? ElementType::kFloat16 : ElementType::kFloat32,
                         std::min(keys - j, panel_keys), size,
                         static_cast<char*>(panel.data()) + j / panel_keys * a.kernels->key_panel_bytes(size));
  }
  const std::string what = Text(a.Name(), "D ", size, " rows ", rows, " keys ", keys, " half ", half);
  EXPECT(tile.Untouched() && panel.Untouched(), what);

  const int64_t stride = panels * panel_keys + 16;
  std::vector<float> scores(At(kTileRows * stride), kMark);
  a.kernels->scores(tile.data(), rows, panel.data(), keys, size, scores.data(), stride);
  for (int64_t r = 0; r < rows; ++r) {
    double query_step = 0.0;
    for (int64_t c = 0; c < size; ++c) query_step = std::max(query_step, std::fabs(query[At(r * size + c)]) / 127.0);
    for (int64_t j = 0; j < stride; ++j) {
      const float found = scores[At(r * stride + j)];
      if (j >= panels * panel_keys) EXPECT(found == kMark, what);
      if (j >= keys) continue;
      double sum = 0.0;
      double magnitude = 0.0;
      double key_step = 0.0;
      for (int64_t c = 0; c < size; ++c) key_step = std::max(key_step, std::fabs(key[At(j * size + c)]) / 127.0);
      double grid = 0.0;
      for (int64_t c = 0; c < size; ++c) {
        const double q = query[At(r * size + c)];
        const double k = key[At(j * size + c)];
        sum += q * k;
        magnitude += std::fabs(q * k);
        grid += std::fabs(q) * key_step / 2 + std::fabs(k) * query_step / 2 + query_step * key_step / 4;
      }
      double most = 1.2e-7 * static_cast<double>(size + 8) * magnitude;
      if (a.compute == PrefillCompute::kBfloat16) most += 2.01 * kBfloat16Error * magnitude;
      if (a.compute == PrefillCompute::kInt8) most += 1.0001 * grid;
      EXPECT(std::fabs(found - sum) <= most, what, " row ", r, " key ", j, ": ", found, " for ", sum);
    }
  }
}

DELTALLM_TEST(prefill_kernels, scores_agree_with_a_double_sum) {
  Random random;
  for (const Arithmetic& a : Arithmetics()) {
    for (const int64_t size : kHeadSizes) {
      CheckScores(a, random, size, random.Int(1, kTileRows), random.Int(1, a.kernels->panel_keys),
                  random.Int(0, 1) == 1);
      CheckScores(a, random, size, kTileRows, a.kernels->panel_keys, random.Int(0, 1) == 1);
      CheckScores(a, random, size, kTileRows - 1, random.Int(1, 3 * a.kernels->panel_keys), random.Int(0, 1) == 1);
    }
    for (int64_t keys = 1; keys <= a.kernels->panel_keys; ++keys) CheckScores(a, random, 18, 5, keys, keys % 2 == 0);
  }
}

void CheckSums(const Arithmetic& a, Random& random, int64_t size, bool half) {
  const int64_t multiple = a.kernels->value_multiple;
  // Two calls of pack_values; the second leaves a part of a multiple.
  const int64_t first_rows = random.Int(1, 60) * multiple;
  const int64_t rows = first_rows + random.Int(1, 90);
  std::vector<float> value = random.Normals(rows * size);
  std::vector<uint16_t> half_value(value.size());
  for (size_t i = 0; i < value.size(); ++i) half_value[i] = FloatToHalf(value[i]);
  if (half) std::transform(half_value.begin(), half_value.end(), value.begin(), HalfToFloat);
  Buffer block(a.kernels->value_block_bytes(size));
  const ElementType type = half ? ElementType::kFloat16 : ElementType::kFloat32;
  const auto source = [&](int64_t row) {
    return half ? static_cast<const void*>(&half_value[At(row * size)]) : &value[At(row * size)];
  };
  a.kernels->pack_values(source(0), type, 0, first_rows, size, block.data());
  a.kernels->pack_values(source(first_rows), type, first_rows, rows - first_rows, size, block.data());
  const std::string what = Text(a.Name(), "D ", size, " rows ", rows, " half ", half);
  EXPECT(block.Untouched(), what);

  const int64_t begin = random.Int(0, rows - 1) / multiple * multiple;
  const int64_t end = random.Int(begin + 1, rows);
  const int64_t rounded_end = (end + multiple - 1) / multiple * multiple;
  std::vector<float> weights = random.Normals(kTileRows * kRowStride);
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t j = 0; j < kRowStride; ++j) {
      float& weight = weights[At(r * kRowStride + j)];
      weight = j < end ? std::fabs(weight) : 0.0f;
    }
  }
  Buffer converted(kTileRows * kRowStride * a.kernels->weight_bytes);
  for (int64_t r = 0; r < kTileRows; ++r) {
    a.kernels->convert_weights(&weights[At(r * kRowStride)], {begin, rounded_end},
                               static_cast<char*>(converted.data()) + r * kRowStride * a.kernels->weight_bytes);
  }
  constexpr int64_t kAlignment = PrefillArithmetic::kSumAlignment;
  const int64_t stride = (size + kAlignment - 1) / kAlignment * kAlignment + kAlignment;
  const int64_t rows_used = random.Int(1, kTileRows);
  const std::vector<float> before = random.Normals(kTileRows * stride);
  std::vector<float> sums = before;
  a.kernels->add_values(converted.data(), kRowStride, rows_used, block.data(), {begin, rounded_end}, size, sums.data(),
                        stride);
  for (int64_t r = 0; r < rows_used; ++r) {
    for (int64_t c = 0; c < stride; ++c) {
      const auto at = At(r * stride + c);
      if (c >= stride - kAlignment) EXPECT(sums[at] == before[at], what, " wrote behind a row of sums");
      if (c >= size) continue;
      double sum = before[at];
      double magnitude = std::fabs(sum);
      double products = 0.0;
      for (int64_t j = begin; j < end; ++j) {
        const double product = double{weights[At(r * kRowStride + j)]} * value[At(j * size + c)];
        sum += product;
        products += std::fabs(product);
      }
      magnitude += products;
      double most = 1.2e-7 * static_cast<double>(end - begin + 8) * magnitude;
      if (a.compute != PrefillCompute::kFloat32) most += 2.01 * kBfloat16Error * products;
      EXPECT(std::fabs(sums[at] - sum) <= most, what, " row ", r, " channel ", c, ": ", sums[at], " for ", sum);
    }
  }
}

DELTALLM_TEST(prefill_kernels, sums_of_values_agree_with_a_double_sum) {
  Random random;
  for (const Arithmetic& a : Arithmetics()) {
    for (const int64_t size : kHeadSizes) {
      for (int trial = 0; trial < 3; ++trial) CheckSums(a, random, size, trial == 1);
    }
  }
}

/// Weights as float32, whatever their form.
std::vector<float> Read(const Arithmetic& a, const void* weights, ColumnRange columns) {
  std::vector<float> read;
  for (int64_t j = columns.begin; j < columns.end; ++j) {
    float weight = 0.0f;
    if (a.kernels->weight_bytes == 4) {
      weight = static_cast<const float*>(weights)[j];
    } else {
      const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(weights)[j]) << 16;
      std::memcpy(&weight, &bits, sizeof weight);
    }
    read.push_back(weight);
  }
  return read;
}

DELTALLM_TEST(prefill_kernels, softmax_raises_the_maximum_and_weighs_what_is_seen) {
  Random random;
  for (const Arithmetic& a : Arithmetics()) {
    for (int trial = 0; trial < 150; ++trial) {
      const int64_t multiple = a.kernels->value_multiple;
      const ColumnRange written{random.Int(0, 90) * multiple, random.Int(91, 256) * multiple};
      ColumnRange seen{random.Int(written.begin, written.end), written.end - random.Int(0, multiple - 1)};
      if (trial % 3 == 0) seen.end = std::min(seen.end, seen.begin + random.Int(0, 40));
      seen.end = std::max(seen.end, seen.begin);
      std::vector<float> scores = random.Normals(kRowStride);
      for (float& score : scores) score *= 8.0f;
      if (seen.end > seen.begin) scores[At(random.Int(seen.begin, seen.end - 1))] = -kInfinity;
      std::vector<float> tokens(At(kRowStride));
      for (float& n : tokens) n = static_cast<float>(random.Int(1, 500));
      const bool has_tokens = trial % 2 == 1;
      const float skip = random.Pick({0.0f, 0.0f, 0.01f});
      SoftmaxRow row{random.Pick({-kInfinity, 0.5f, 200.0f}), 0.0f, kMark};
      row.denominator = row.maximum == -kInfinity ? 0.0f : 3.0f;
      const SoftmaxRow before = row;
      const std::vector<float> given = scores;
      Buffer weights(kRowStride * a.kernels->weight_bytes);
      const uint32_t stretches = a.kernels->softmax(scores.data(), seen, written, has_tokens ? tokens.data() : nullptr,
                                                    skip, &row, weights.data());
      const std::string what = Text(a.Name(), "trial ", trial, " ");
      EXPECT(weights.Untouched(), what);
      float top = before.maximum;
      for (int64_t j = seen.begin; j < seen.end; ++j) top = std::max(top, given[At(j)]);
      EXPECT(row.maximum == top, what, row.maximum, " for ", top);
      const float change = before.maximum - top;
      const double keep = before.maximum == -kInfinity ? 1.0 : std::exp2(double{change});
      EXPECT(std::fabs(row.keep - keep) <= 4e-6 * keep, what, row.keep, " for ", keep);
      double denominator = before.denominator * keep;
      const bool rounds = a.compute != PrefillCompute::kFloat32;
      // Weights in bfloat16 need no more of the power than it has, and it is good to 3e-6.
      const double relative = rounds ? 1.01 * kBfloat16Error : 5e-7;
      const std::vector<float> found = Read(a, weights.data(), written);
      for (int64_t j = written.begin; j < written.end; ++j) {
        const float weight = found[At(j - written.begin)];
        if (j < seen.begin || j >= seen.end) {
          EXPECT(weight == 0.0f, what, "column ", j, " is not seen: ", weight);
          continue;
        }
        // The difference is one float32 subtraction.
        const float exponent = given[At(j)] - top;
        const double power = given[At(j)] == -kInfinity ? 0.0 : std::exp2(double{exponent});
        const double expected = power * (has_tokens ? tokens[At(j)] : 1.0);
        denominator += expected;
        const bool at_edge = std::fabs(power / skip - 1.0) < 1e-5;
        const bool left_out = power < skip || power < 1.2e-38;
        EXPECT(at_edge || std::fabs(weight - (left_out ? 0.0 : expected)) <= relative * expected + 1.2e-38, what,
               "column ", j, ": ", weight, " for ", expected);
        EXPECT(weight == 0.0f || (stretches >> (j / 64) & 1u) != 0, what, "column ", j, " has no bit");
      }
      EXPECT(std::fabs(row.denominator - denominator) <= 1e-5 * denominator, what, row.denominator, " for ",
             denominator);
      for (int64_t stretch = 0; stretch < kRowStride / 64 && skip > 0.0f; ++stretch) {
        const int64_t begin = std::max(stretch * 64, written.begin);
        const int64_t end = std::min((stretch + 1) * 64, written.end);
        const bool has_weight =
            begin < end && std::any_of(found.begin() + (begin - written.begin), found.begin() + (end - written.begin),
                                       [](float weight) { return weight != 0.0f; });
        EXPECT((stretches >> stretch & 1u) == (has_weight ? 1u : 0u), what, "stretch ", stretch);
      }
    }
  }
}

DELTALLM_TEST(prefill_kernels, softmax_keeps_nan_and_gives_nothing_for_minus_infinity) {
  for (const Arithmetic& a : Arithmetics()) {
    for (const int64_t at : {0, 5, 31, 32, 50}) {
      std::vector<float> scores(At(kRowStride), -kInfinity);
      Buffer weights(kRowStride * a.kernels->weight_bytes);
      SoftmaxRow row{-kInfinity, 0.0f, 0.0f};
      a.kernels->softmax(scores.data(), {0, 51}, {0, 52}, nullptr, 0.0f, &row, weights.data());
      EXPECT(row.maximum == -kInfinity && row.denominator == 0.0f && row.keep == 1.0f, a.Name(), row.denominator);
      for (const float weight : Read(a, weights.data(), {0, 52})) EXPECT(weight == 0.0f, a.Name(), weight);
      std::fill(scores.begin(), scores.end(), -1.0f);
      scores[At(at)] = std::numeric_limits<float>::quiet_NaN();
      const uint32_t stretches =
          a.kernels->softmax(scores.data(), {0, 51}, {0, 52}, nullptr, 0.1f, &row, weights.data());
      EXPECT(std::isnan(row.denominator) && (stretches & 1u) != 0, a.Name(), at);
      EXPECT(std::isnan(Read(a, weights.data(), {0, 52})[At(at)]), a.Name(), at);
    }
  }
}

/// A tile of scores, what came before it, and values, for softmax_and_add_values.
struct SoftmaxStep {
  int64_t size;
  int64_t rows;
  int64_t stride;
  int64_t sum_stride;
  ColumnRange seen[kTileRows];
  SoftmaxRow row[kTileRows];
  std::vector<float> scores;
  std::vector<float> value;
  std::vector<float> sums;
};

/// Ranges whose ends grow from row to row, some of them empty; scores of every row that sees something include −∞.
SoftmaxStep RandomStep(Random& random, int64_t size, int64_t value_rows) {
  constexpr int64_t kAlignment = PrefillArithmetic::kSumAlignment;
  SoftmaxStep step;
  step.size = size;
  step.rows = random.Int(1, kTileRows);
  step.stride = random.Pick<int64_t>({256, 272, 512});
  step.sum_stride = (size + kAlignment - 1) / kAlignment * kAlignment + random.Int(0, 1) * kAlignment;
  step.scores = random.Normals(kTileRows * step.stride);
  for (float& score : step.scores) score *= 8.0f;
  step.value = random.Normals(value_rows * size);
  step.sums = random.Normals(kTileRows * step.sum_stride);
  int64_t begin = random.Pick<int64_t>({0, 0, 31, 70});
  int64_t end = random.Int(begin + 1, value_rows - 6);
  for (int64_t r = 0; r < kTileRows; ++r) {
    begin = std::min(begin + random.Int(0, 1), value_rows);
    end = std::min(std::max(begin, end) + random.Int(0, 1), value_rows);
    step.seen[r] = r == 1 && random.Int(0, 3) == 0 ? ColumnRange{begin, begin} : ColumnRange{begin, end};
    float* scores = &step.scores[At(r * step.stride)];
    // What no query sees may be anything.
    for (int64_t j = 0; j < step.stride; ++j) {
      if (j < step.seen[r].begin || j >= step.seen[r].end) scores[j] = random.Pick({kInfinity, std::nanf("")});
    }
    if (end - begin > 2 && step.seen[r].end > begin) scores[random.Int(begin, end - 1)] = -kInfinity;
    const bool first = random.Int(0, 2) == 0;
    step.row[r] = {first ? -kInfinity : random.Pick({0.5f, 200.0f}), first ? 0.0f : 3.0f, kMark};
    if (first) std::fill_n(&step.sums[At(r * step.sum_stride)], step.sum_stride, 0.0f);
  }
  return step;
}

DELTALLM_TEST(prefill_kernels, softmax_and_values_at_once_agree_with_double_sums) {
  Random random;
  constexpr int64_t kRows = 240;
  for (const Arithmetic& a : Arithmetics()) {
    for (int trial = 0; trial < 120; ++trial) {
      const int64_t size = random.Pick(kHeadSizes);
      SoftmaxStep step = RandomStep(random, size, kRows);
      const SoftmaxStep given = step;
      Buffer block(a.kernels->value_block_bytes(size));
      int64_t used = 1;
      for (int64_t r = 0; r < step.rows; ++r) used = std::max(used, step.seen[r].end);
      // What lies behind the last row that a query sees must not matter.
      std::fill_n(static_cast<uint8_t*>(block.data()), a.kernels->value_block_bytes(size), uint8_t{0xFF});
      a.kernels->pack_values(step.value.data(), ElementType::kFloat32, 0, used, size, block.data());
      a.kernels->softmax_and_add_values(step.scores.data(), step.stride, step.rows, step.seen, step.row, block.data(),
                                        size, step.sums.data(), step.sum_stride);
      const bool rounds = a.compute != PrefillCompute::kFloat32;
      for (int64_t r = 0; r < step.rows; ++r) {
        const std::string what = Text(a.Name(), "trial ", trial, " D ", size, " row ", r, " of ", step.rows, " sees ",
                                      given.seen[r].begin, " to ", given.seen[r].end, ": ");
        const float* scores = &given.scores[At(r * given.stride)];
        float top = given.row[r].maximum;
        for (int64_t j = given.seen[r].begin; j < given.seen[r].end; ++j) top = std::max(top, scores[j]);
        EXPECT(step.row[r].maximum == top, what, step.row[r].maximum, " for ", top);
        const float change = given.row[r].maximum - top;
        const double keep = given.row[r].maximum == -kInfinity ? 1.0 : std::exp2(double{change});
        EXPECT(std::fabs(step.row[r].keep - keep) <= 4e-6 * keep, what, step.row[r].keep, " for ", keep);
        std::vector<double> weights(At(kRows), 0.0);
        double denominator = given.row[r].denominator * keep;
        for (int64_t j = given.seen[r].begin; j < given.seen[r].end; ++j) {
          const float exponent = scores[j] - top;
          weights[At(j)] = scores[j] == -kInfinity ? 0.0 : std::exp2(double{exponent});
          denominator += weights[At(j)];
        }
        const double relative = rounds ? 1.05 * kBfloat16Error : 1e-5;
        EXPECT(std::fabs(step.row[r].denominator - denominator) <= relative * denominator + 1e-37, what,
               step.row[r].denominator, " for ", denominator);
        for (int64_t c = 0; c < size; ++c) {
          const auto at = At(r * given.sum_stride + c);
          double sum = given.sums[at] * keep;
          double magnitude = std::fabs(sum);
          for (int64_t j = given.seen[r].begin; j < given.seen[r].end; ++j) {
            const double product = weights[At(j)] * given.value[At(j * size + c)];
            sum += product;
            magnitude += std::fabs(product);
          }
          const double most = (rounds ? 2.1 * kBfloat16Error : 1e-5) * magnitude + 1e-37;
          EXPECT(std::fabs(step.sums[at] - sum) <= most, what, "channel ", c, ": ", step.sums[at], " for ", sum);
        }
        for (int64_t c = (size + 15) / 16 * 16; c < step.sum_stride; ++c) {
          const auto at = At(r * given.sum_stride + c);
          EXPECT(step.sums[at] == given.sums[at], what, "wrote behind a row of sums");
        }
      }
      for (int64_t r = 0; r < kTileRows; ++r) {
        for (int64_t j = 256; j < step.stride; ++j) {
          const auto at = At(r * step.stride + j);
          EXPECT(std::memcmp(&step.scores[at], &given.scores[at], sizeof(float)) == 0, a.Name(), "column ", j);
        }
      }
    }
  }
}

DELTALLM_TEST(prefill_kernels, softmax_and_values_at_once_keep_nan) {
  for (const Arithmetic& a : Arithmetics()) {
    for (const int64_t at : {0, 5, 31, 32, 50}) {
      std::vector<float> scores(At(kTileRows * kRowStride), -1.0f);
      scores[At(kRowStride + at)] = std::nanf("");
      std::vector<float> sums(At(kTileRows * 16), 0.0f);
      const std::vector<float> value(At(51 * 16), 2.0f);
      Buffer block(a.kernels->value_block_bytes(16));
      a.kernels->pack_values(value.data(), ElementType::kFloat32, 0, 51, 16, block.data());
      SoftmaxRow row[3];
      std::fill_n(row, 3, SoftmaxRow{-kInfinity, 0.0f, 0.0f});
      const ColumnRange seen[3] = {{0, 51}, {0, 51}, {0, 51}};
      a.kernels->softmax_and_add_values(scores.data(), kRowStride, 3, seen, row, block.data(), 16, sums.data(), 16);
      for (int64_t r = 0; r < 3; ++r) {
        EXPECT(std::isnan(row[r].denominator) == (r == 1), a.Name(), at, " row ", r, ": ", row[r].denominator);
        for (int64_t c = 0; c < 16; ++c) EXPECT(std::isnan(sums[At(r * 16 + c)]) == (r == 1), a.Name(), at);
      }
    }
  }
}

}  // namespace
}  // namespace deltallm::test
