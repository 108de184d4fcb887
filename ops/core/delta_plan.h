// The inputs of DeltaAttention and everything that is decided from them before anything is computed.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/packed_layout.h"
#include "core/attributes.h"
#include "core/checks.h"
#include "core/lengths.h"
#include "core/rows_io.h"
#include "core/tensor.h"

namespace deltallm {

/// docs/spec.md section 7, inputs 0–11 and 16–18.
struct DeltaAttentionInputs {
  Tensor query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, position_ids,
      attention_bias, head_sink, threshold, row_weight, attention_mask;
};

struct DeltaPlan {
  Geometry geometry;
  bool packed_qkv = false;  ///< query holds keys and values too
  Lengths lengths;
  int64_t past_capacity = 0;
  int64_t capacity = 0;  ///< rows of present
  ElementType cache_type = ElementType::kFloat32;
  Rotary rotary;

  // Of a packed cache, docs/cache-format.md:
  PackedLayout past_layout;
  PackedLayout layout;                   ///< of present
  bool runs_merge = false;               ///< a row may stand for several tokens
  std::vector<PackedState> past_states;  ///< [B·Hkv], what this call keeps of the past; empty for a float cache

  Shape output_shape() const {
    return {geometry.batch, geometry.new_tokens, geometry.query_heads * geometry.head_size};
  }
  bool packed_cache() const { return cache_type == ElementType::kUint8; }
  Shape present_shape() const {
    return {geometry.batch, geometry.kv_heads, capacity,
            packed_cache() ? layout.bytes_per_token() : geometry.head_size};
  }
  Shape statistics_shape() const { return {geometry.kv_heads, 8}; }
};

/// Checks every input against the others and the attributes. Throws Refusal; nothing has been written then.
DeltaPlan MakeDeltaPlan(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs);

}  // namespace deltallm
