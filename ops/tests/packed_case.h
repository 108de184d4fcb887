// Random sequences over packed caches: DeltaCase with the models of its heads.
#pragma once

#include <string>
#include <vector>

#include "tests/delta_case.h"
#include "tests/packed_model.h"

namespace deltallm::test {

/// Row `row` of (batch row, KV head) as it comes to the cache: rotated.
std::vector<float> IncomingKey(const DeltaCase& c, int64_t b, int64_t kv, int64_t row);
std::vector<float> IncomingValue(const DeltaCase& c, int64_t b, int64_t kv, int64_t row);
std::vector<float> RotatedQuery(const DeltaCase& c, int64_t b, int64_t h, int64_t row);

inline bool RunsMerge(const DeltaCase& c) {
  return c.attributes.hold.row_granularity && c.attributes.attention.local_window < 0 && c.bias.empty();
}

/// Keys that change slowly, so that some are held; sinks + window from 8 on.
DeltaCase RandomPackedCase(Random& random, CacheFormat format, int64_t tokens);

/// The caches of all heads, [B·Hkv], grown together.
class PackedModels {
 public:
  explicit PackedModels(const DeltaCase& c);
  /// Tokens of the rows [first, last).
  void Append(int64_t first, int64_t last);
  PackedModel& operator[](size_t head) { return models_[head]; }
  /// "" if the result's caches hold these, else the first difference.
  std::string Compare(const DeltaResult& result) const;

 private:
  const DeltaCase& c_;
  std::vector<PackedModel> models_;
};

/// A cache with room for the whole sequence and nothing in it but noise.
DeltaResult NoisyBuffer(Random& random, const DeltaCase& c);

std::string DescribePacked(const DeltaCase& c);

}  // namespace deltallm::test
