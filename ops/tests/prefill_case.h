// Random calls of AttendBlocks over the rows of a cache and over blocks of the past, and softmax attention in double
// loops to judge them by.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/attend.h"
#include "tests/harness.h"

namespace deltallm::test {

/// One row of a packed cache as PastBlocks hands it over.
struct PastRow {
  std::vector<float> key, value;
  float tokens = 1.0f;
  int64_t cache_row = -1;
};

/// Rows of each (batch row, KV head) in blocks of the sizes given.
class FakePast : public PastBlocks {
 public:
  std::vector<std::vector<std::vector<PastRow>>> heads;  // [head][block][row]

  int64_t Count(int64_t head) const override { return static_cast<int64_t>(heads[static_cast<size_t>(head)].size()); }
  void Load(int64_t head, int64_t block, PastBlock* into) const override;
};

struct PrefillCase {
  Geometry geometry;
  AttentionRules rules;
  std::vector<RowSpan> spans;
  ElementType type = ElementType::kFloat32;  // of keys and values
  int64_t capacity = 0;
  std::vector<float> query;             // [B, S, Hq, D]
  std::vector<float> key, held, value;  // [B·Hkv, capacity, D], representable in `type`; `held` may be empty
  std::vector<float> bias;              // [1, Hq, S, columns], or empty
  int64_t bias_columns = 0;
  std::vector<float> head_sink;    // [Hq], or empty
  std::unique_ptr<FakePast> past;  // or null; then rows of key and value begin with the first new token

  std::string Describe() const;
  /// Output [B, S, Hq, D].
  std::vector<float> Run(const Kernels& kernels, const Parallel& parallel, SkipCounter* skipped = nullptr) const;
};

/// Expected outputs, and how far a computation in rules.prefill_compute may be from them, element by element.
struct PrefillExpected {
  std::vector<double> output;
  std::vector<double> tolerance;
};
PrefillExpected Expect(const PrefillCase& c);

/// A case with everything random but the compute, with blocks of the past or without.
PrefillCase RandomPrefillCase(Random& random, bool with_past);

/// The computes this set of kernels has of its own.
std::vector<PrefillCompute> ComputesOf(const Kernels& kernels);

}  // namespace deltallm::test
