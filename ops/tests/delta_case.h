// Random calls of DeltaAttention, and the specification in double loops to judge them by.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/delta_attention.h"
#include "core/visibility.h"
#include "kernels/half.h"
#include "kernels/rotary.h"
#include "tests/harness.h"

namespace deltallm::test {

template <typename T>
Tensor TensorOf(const std::vector<T>& values, const Shape& shape, ElementType type) {
  return {values.data(), type, shape, true};
}

inline Tensor FloatTensor(const std::vector<float>& values, const Shape& shape) {
  return TensorOf(values, shape, ElementType::kFloat32);
}

/// A cache tensor's bytes, readable as float32.
struct CacheBytes {
  ElementType type = ElementType::kFloat32;
  std::vector<char> bytes;

  void Resize(int64_t elements) { bytes.resize(static_cast<size_t>(elements * ElementSize(type))); }
  float At(int64_t i) const { return FloatAt(bytes.data(), type, i); }
};

struct DeltaResult {
  std::vector<float> output;
  CacheBytes key, value;
  std::vector<int64_t> statistics;
  int64_t capacity = 0;
};

/// A whole sequence of B·N tokens; Run feeds a stretch of it on top of what an earlier Run left.
struct DeltaCase {
  DeltaAttentionAttributes attributes;
  int64_t batch = 1, tokens = 1, head_size = 8;
  ElementType cache_type = ElementType::kFloat32;
  std::vector<int64_t> start, length;  // per batch row, in tokens
  std::vector<float> query, key, value, threshold, row_weight, cos, sin, bias, head_sink;
  int64_t rotary_half = 0;

  int64_t group() const { return attributes.num_heads / attributes.kv_num_heads; }
  /// The last dimension of the caches: channels, or bytes of a packed one.
  int64_t cache_width() const {
    if (!attributes.packed_cache()) return head_size;
    PackedLayout layout;
    layout.format = attributes.cache_format;
    layout.head_size = head_size;
    return layout.bytes_per_token();
  }

  /// Tokens [first, last) as one call. `past` may be null for the first. in_place gives past's buffers to present.
  DeltaResult Run(const Kernels& kernels, const Parallel& parallel, int64_t first, int64_t last, DeltaResult* past,
                  bool in_place, int64_t capacity) const;
};

inline std::vector<float> Stretch(const std::vector<float>& rows, int64_t batch, int64_t tokens, int64_t first,
                                  int64_t last) {
  const int64_t width = static_cast<int64_t>(rows.size()) / (batch * tokens);
  std::vector<float> part;
  for (int64_t b = 0; b < batch; ++b) {
    const auto begin = rows.begin() + (b * tokens + first) * width;
    part.insert(part.end(), begin, begin + (last - first) * width);
  }
  return part;
}

inline DeltaResult DeltaCase::Run(const Kernels& kernels, const Parallel& parallel, int64_t first, int64_t last,
                                  DeltaResult* past, bool in_place, int64_t capacity) const {
  const int64_t new_tokens = last - first;
  const int64_t heads = attributes.num_heads;
  const int64_t kv_heads = attributes.kv_num_heads;
  const std::vector<float> q = Stretch(query, batch, tokens, first, last);
  const std::vector<float> k = Stretch(key, batch, tokens, first, last);
  const std::vector<float> v = Stretch(value, batch, tokens, first, last);
  std::vector<int64_t> mask;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < last; ++t) {
      const auto at = static_cast<size_t>(b);
      mask.push_back(t >= start[at] && t < length[at] ? 1 : 0);
    }
  }
  DeltaAttentionInputs in;
  in.query = FloatTensor(q, {batch, new_tokens, heads * head_size});
  in.key = FloatTensor(k, {batch, new_tokens, kv_heads * head_size});
  in.value = FloatTensor(v, {batch, new_tokens, kv_heads * head_size});
  // The operator's own rule for a mask: the past is everything before the new tokens.
  const CacheBytes empty{cache_type, {}};
  const Shape past_shape{batch, kv_heads, past == nullptr ? 0 : past->capacity, cache_width()};
  in.past_key = {past == nullptr ? empty.bytes.data() : past->key.bytes.data(), cache_type, past_shape, true};
  in.past_value = {past == nullptr ? empty.bytes.data() : past->value.bytes.data(), cache_type, past_shape, true};
  in.attention_mask = TensorOf(mask, {batch, last}, ElementType::kInt64);
  in.threshold = FloatTensor(
      threshold, static_cast<int64_t>(threshold.size()) == kv_heads ? Shape{kv_heads} : Shape{kv_heads, head_size});
  if (!row_weight.empty()) in.row_weight = FloatTensor(row_weight, {kv_heads, head_size});
  if (rotary_half > 0) {
    in.cos_cache = FloatTensor(cos, {tokens, rotary_half});
    in.sin_cache = FloatTensor(sin, {tokens, rotary_half});
  }
  std::vector<float> bias_part;
  if (!bias.empty()) {
    // [1, heads, tokens, tokens] → the rows of the new tokens and the columns so far.
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t s = first; s < last; ++s) {
        const auto row = bias.begin() + (h * tokens + s) * tokens;
        bias_part.insert(bias_part.end(), row, row + last);
      }
    }
    in.attention_bias = FloatTensor(bias_part, {1, heads, new_tokens, last});
  }
  if (!head_sink.empty()) in.head_sink = FloatTensor(head_sink, {heads});

  const DeltaPlan plan = MakeDeltaPlan(attributes, in);
  DeltaResult result;
  result.capacity = std::max(plan.capacity, in_place ? capacity : plan.capacity);
  result.output.assign(static_cast<size_t>(batch * new_tokens * heads * head_size),
                       std::numeric_limits<float>::quiet_NaN());
  result.statistics.assign(static_cast<size_t>(kv_heads * 8), -1);
  DeltaAttentionOutputs out;
  out.output = {result.output.data(), ElementType::kFloat32};
  out.statistics = result.statistics.data();
  if (in_place) {
    result.key = std::move(past->key);
    result.value = std::move(past->value);
    in.past_key.data = result.key.bytes.data();
    in.past_value.data = result.value.bytes.data();
  } else {
    result.key.type = result.value.type = cache_type;
    result.key.Resize(batch * kv_heads * plan.capacity * cache_width());
    result.value.Resize(batch * kv_heads * plan.capacity * cache_width());
  }
  out.present_key = result.key.bytes.data();
  out.present_value = result.value.bytes.data();
  RunDeltaAttention(attributes, in, plan, out, kernels, parallel);
  return result;
}

/// A case with everything random: heads, sizes, rules, padding, rotary, bias, sinks.
DeltaCase RandomDeltaCase(Random& random, int64_t tokens);

/// The specification for the whole sequence in one call with prefill "delta".
struct Expected {
  std::vector<double> output;  // [B, N, Hq·D]
  std::vector<float> key;      // k̂ where coded, k elsewhere, [B, Hkv, N, D]; unset outside the real tokens
  std::vector<float> value;
};
Expected ExpectOneShot(const DeltaCase& delta_case);

/// The same of the last token alone, output [B, 1, Hq·D]: cheaper for a long past.
Expected ExpectLast(const DeltaCase& delta_case);

}  // namespace deltallm::test
