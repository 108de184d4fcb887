#include "tests/packed_case.h"

namespace deltallm::test {
namespace {

size_t At(int64_t index) { return static_cast<size_t>(index); }

std::vector<float> Rotated(const DeltaCase& c, int64_t b, int64_t row, const float* x) {
  std::vector<float> rotated(At(c.head_size));
  const int64_t start = c.start[At(b)];
  const int64_t position = row >= start && row < c.length[At(b)] ? row - start : 0;
  const int64_t table = position * c.rotary_half;
  RotateRow(x, c.head_size, c.cos.data() + table, c.sin.data() + table, c.rotary_half, c.attributes.rotary_interleaved,
            rotated.data());
  return rotated;
}

}  // namespace

std::vector<float> IncomingKey(const DeltaCase& c, int64_t b, int64_t kv, int64_t row) {
  return Rotated(c, b, row, &c.key[At(((b * c.tokens + row) * c.attributes.kv_num_heads + kv) * c.head_size)]);
}

std::vector<float> IncomingValue(const DeltaCase& c, int64_t b, int64_t kv, int64_t row) {
  const float* value = &c.value[At(((b * c.tokens + row) * c.attributes.kv_num_heads + kv) * c.head_size)];
  return std::vector<float>(value, value + c.head_size);
}

std::vector<float> RotatedQuery(const DeltaCase& c, int64_t b, int64_t h, int64_t row) {
  return Rotated(c, b, row, &c.query[At(((b * c.tokens + row) * c.attributes.num_heads + h) * c.head_size)]);
}

DeltaCase RandomPackedCase(Random& random, CacheFormat format, int64_t tokens) {
  DeltaCase c = RandomDeltaCase(random, tokens);
  c.cache_type = ElementType::kUint8;
  c.attributes.has_cache_format = true;
  c.attributes.cache_format = format;
  AttentionRules& rules = c.attributes.attention;
  rules.sinks = random.Pick<int64_t>({0, 1, 4, 9});
  rules.delta_window = std::max<int64_t>(8 - rules.sinks, random.Pick<int64_t>({0, 4, 7, 16, 33}));
  rules.local_window = random.Pick<int64_t>({-1, -1, -1, 5, 150});
  if (random.Int(0, 1) == 0) c.bias.clear();
  if (random.Int(0, 1) == 0) {
    c.rotary_half = 0;
    c.attributes.do_rotary = false;
  }
  // Steps between the values of the thresholds that hold much and little.
  const int64_t width = c.attributes.kv_num_heads * c.head_size;
  for (int64_t i = width; i < static_cast<int64_t>(c.key.size()); ++i) {
    if (i / width % tokens != 0) c.key[At(i)] = 0.95f * c.key[At(i - width)] + 0.3f * c.key[At(i)];
  }
  return c;
}

PackedModels::PackedModels(const DeltaCase& c) : c_(c) {
  const int64_t kv_heads = c.attributes.kv_num_heads;
  const bool per_channel = static_cast<int64_t>(c.threshold.size()) > kv_heads;
  for (int64_t head = 0; head < c.batch * kv_heads; ++head) {
    const int64_t kv = head % kv_heads;
    models_.emplace_back(c.attributes, c.head_size, &c.threshold[At(per_channel ? kv * c.head_size : kv)], per_channel,
                         c.row_weight.empty() ? nullptr : &c.row_weight[At(kv * c.head_size)], RunsMerge(c));
  }
}

void PackedModels::Append(int64_t first, int64_t last) {
  const int64_t kv_heads = c_.attributes.kv_num_heads;
  for (int64_t head = 0; head < c_.batch * kv_heads; ++head) {
    const int64_t b = head / kv_heads;
    for (int64_t row = std::max(first, c_.start[At(b)]); row < std::min(last, c_.length[At(b)]); ++row) {
      models_[At(head)].Append(IncomingKey(c_, b, head % kv_heads, row).data(),
                               IncomingValue(c_, b, head % kv_heads, row).data());
    }
  }
}

std::string PackedModels::Compare(const DeltaResult& result) const {
  const int64_t slab = result.capacity * c_.cache_width();
  for (size_t head = 0; head < models_.size(); ++head) {
    const auto at = [&](const CacheBytes& cache) {
      return reinterpret_cast<const uint8_t*>(cache.bytes.data()) + static_cast<int64_t>(head) * slab;
    };
    const std::string found = models_[head].Compare(at(result.key), at(result.value), result.capacity);
    if (!found.empty()) return Text("head ", head, ": ", found);
  }
  return "";
}

DeltaResult NoisyBuffer(Random& random, const DeltaCase& c) {
  PackedLayout layout;
  layout.format = c.attributes.cache_format;
  layout.head_size = c.head_size;
  layout.sinks = c.attributes.attention.sinks;
  layout.window = c.attributes.attention.delta_window;
  DeltaResult buffer;
  buffer.capacity = std::max(c.tokens, layout.RowsNeeded(c.tokens)) + random.Int(0, 3);
  for (CacheBytes* cache : {&buffer.key, &buffer.value}) {
    cache->type = ElementType::kUint8;
    cache->Resize(c.batch * c.attributes.kv_num_heads * buffer.capacity * c.cache_width());
    for (char& byte : cache->bytes) byte = static_cast<char>(random.Int(0, 2) == 0 ? 0xff : random.Int(0, 255));
  }
  return buffer;
}

std::string DescribePacked(const DeltaCase& c) {
  const AttentionRules& rules = c.attributes.attention;
  return Text(FormatName(c.attributes.cache_format), " B ", c.batch, " N ", c.tokens, " Hq ", c.attributes.num_heads,
              " Hkv ", c.attributes.kv_num_heads, " D ", c.head_size, " window ", rules.delta_window, " sinks ",
              rules.sinks, " local ", rules.local_window, " row ", c.attributes.hold.row_granularity, " bias ",
              !c.bias.empty(), " exact ", rules.exact_prefill, " ");
}

}  // namespace deltallm::test
