#include "core/delta_plan.h"

#include <algorithm>

#include "core/packed_past.h"
#include "core/refusal.h"

namespace deltallm {
namespace {

void CheckQueryKeyValue(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& in, DeltaPlan& plan) {
  if (in.key.present != in.value.present) {
    Refuse("Only one of key and value is given: give both, or neither and a packed query.");
  }
  plan.packed_qkv = !in.key.present;
  Geometry& geometry = plan.geometry;
  geometry.query_heads = attributes.num_heads;
  geometry.kv_heads = attributes.kv_num_heads;
  const int64_t heads = geometry.query_heads + (plan.packed_qkv ? 2 * geometry.kv_heads : 0);
  const Shape& shape = in.query.shape;
  CheckFloat("query", in.query);
  if (shape.rank() != 3 || shape[2] < heads || shape[2] % heads != 0) {
    Refuse("query has shape ", shape.ToString(), ": give [batch, new tokens, ", heads, " heads x head size]",
           plan.packed_qkv ? " (packed with key and value)." : ".");
  }
  geometry.batch = shape[0];
  geometry.new_tokens = shape[1];
  geometry.head_size = shape[2] / heads;
  if (plan.packed_qkv) return;
  const Shape expected{geometry.batch, geometry.new_tokens, geometry.kv_heads * geometry.head_size};
  for (const auto& [name, tensor] : {std::pair{"key", &in.key}, std::pair{"value", &in.value}}) {
    CheckType(name, *tensor, in.query.type);
    CheckShape(name, *tensor, expected, "batch, new tokens, KV heads x head size of this query");
  }
}

void CheckPast(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& in, DeltaPlan& plan) {
  if (in.past_key.present != in.past_value.present) {
    Refuse("Only one of past_key and past_value is given: give both or neither.");
  }
  const bool packed = attributes.packed_cache();
  const Geometry& geometry = plan.geometry;
  if (attributes.has_cache_format) plan.cache_type = CacheType(attributes.cache_format);
  if (packed) plan.layout = MakePackedLayout(attributes, geometry.head_size);
  if (!in.past_key.present) return;
  const int64_t width = packed ? plan.layout.bytes_per_token() : geometry.head_size;
  const Shape expected{geometry.batch, geometry.kv_heads, -1, width};
  for (const auto& [name, tensor] : {std::pair{"past_key", &in.past_key}, std::pair{"past_value", &in.past_value}}) {
    if (!packed && tensor->type == ElementType::kUint8) {
      Refuse(name,
             " is of type uint8, but cache_format is not \"int8\" or \"int4\": set it, or give float32 or float16.");
    }
    if (packed && tensor->type != plan.cache_type) {
      Refuse(name, " is of type ", TypeName(tensor->type), ", but cache_format is \"",
             FormatName(attributes.cache_format), "\": give uint8.");
    }
    if (!packed) CheckFloat(name, *tensor);
    CheckShape(name, *tensor, expected,
               packed ? "batch, KV heads, rows, bytes per token" : "batch, KV heads, rows, head size");
    if (attributes.has_cache_format && tensor->type != plan.cache_type) {
      Refuse(name, " is of type ", TypeName(tensor->type), ", but cache_format is \"",
             FormatName(attributes.cache_format), "\": give that type.");
    }
  }
  CheckType("past_value", in.past_value, in.past_key.type);
  if (in.past_key.shape[2] != in.past_value.shape[2]) {
    Refuse("past_key has ", in.past_key.shape[2], " rows and past_value ", in.past_value.shape[2],
           ": give as many of both.");
  }
  plan.cache_type = in.past_key.type;
  plan.past_capacity = in.past_key.shape[2];
}

/// Table rows of the new tokens; padding, whose rotation nobody reads, takes row 0.
void FillPositions(const Tensor& position_ids, int64_t rows, DeltaPlan& plan) {
  const Geometry& geometry = plan.geometry;
  plan.rotary.positions.reserve(static_cast<size_t>(geometry.batch * geometry.new_tokens));
  for (int64_t b = 0; b < geometry.batch; ++b) {
    const RowSpan& span = plan.lengths.rows[static_cast<size_t>(b)];
    for (int64_t s = 0; s < geometry.new_tokens; ++s) {
      const int64_t row = span.past + s;
      int64_t position = 0;
      if (row >= span.start && row < span.length) {
        position = row - span.start;
        if (position_ids.present) position = position_ids.as<int64_t>()[b * geometry.new_tokens + s];
        if (position < 0 || position >= rows) {
          Refuse("The token in batch row ", b, ", column ", s, " stands at position ", position,
                 ", but cos_cache has rows 0 to ", rows - 1, ": give a longer cos_cache or other position_ids.");
        }
      }
      plan.rotary.positions.push_back(position);
    }
  }
}

void CheckRotary(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& in, DeltaPlan& plan) {
  const Geometry& geometry = plan.geometry;
  if (in.position_ids.present) {
    CheckType("position_ids", in.position_ids, ElementType::kInt64);
    CheckShape("position_ids", in.position_ids, Shape{geometry.batch, geometry.new_tokens}, "batch, new tokens");
  }
  if (!attributes.do_rotary) return;
  if (!in.cos_cache.present || !in.sin_cache.present) {
    Refuse("do_rotary is 1 without cos_cache and sin_cache: give both.");
  }
  CheckFloat("cos_cache", in.cos_cache);
  CheckType("sin_cache", in.sin_cache, in.cos_cache.type);
  const Shape& shape = in.cos_cache.shape;
  if (shape.rank() != 2 || shape[1] < 1 || 2 * shape[1] > geometry.head_size) {
    Refuse("cos_cache has shape ", shape.ToString(), ": give [positions, rotated channels / 2], at most ",
           geometry.head_size / 2, " columns for head size ", geometry.head_size, ".");
  }
  CheckShape("sin_cache", in.sin_cache, shape, "as cos_cache");
  plan.rotary.cos = in.cos_cache.as<char>();
  plan.rotary.sin = in.sin_cache.as<char>();
  plan.rotary.type = in.cos_cache.type;
  plan.rotary.half = shape[1];
  plan.rotary.interleaved = attributes.rotary_interleaved;
  FillPositions(in.position_ids, shape[0], plan);
}

}  // namespace

DeltaPlan MakeDeltaPlan(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& in) {
  DeltaPlan plan;
  CheckQueryKeyValue(attributes, in, plan);
  CheckPast(attributes, in, plan);
  const Geometry& geometry = plan.geometry;
  plan.lengths = ResolveLengths(geometry.batch, geometry.new_tokens, plan.past_capacity, in.seqlens_k,
                                in.total_sequence_length, in.attention_mask);
  plan.capacity = std::max(plan.past_capacity, plan.lengths.total);
  if (attributes.packed_cache()) plan.capacity = std::max(plan.capacity, plan.layout.RowsNeeded(plan.lengths.total));
  // Offsets into the largest arrays are computed in int64 bytes, statistics in multiply-accumulates. A packed row has
  // at most four bytes more than channels.
  CheckedProduct({geometry.batch, geometry.kv_heads, plan.capacity, geometry.head_size + 8, 8});
  CheckedProduct({geometry.batch, geometry.new_tokens, geometry.query_heads, geometry.head_size, plan.capacity});
  CheckRotary(attributes, in, plan);
  CheckAttentionBias(in.attention_bias, geometry, plan.lengths.total);
  CheckHeadSink(in.head_sink, geometry.query_heads);
  CheckThreshold(in.threshold, geometry.kv_heads, geometry.head_size, attributes.hold.row_granularity);
  CheckRowWeight(in.row_weight, geometry.kv_heads, geometry.head_size);
  // Last, because it reads a buffer that the shapes above describe.
  if (attributes.packed_cache()) CheckPackedPast(attributes, in, plan);
  return plan;
}

}  // namespace deltallm
