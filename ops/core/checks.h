// Checks that several operators share. Each throws Refusal with one sentence; they are always on.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace deltallm {

/// Dimensions of one attention layer.
struct Geometry {
  int64_t batch = 0;
  int64_t new_tokens = 0;   ///< S
  int64_t query_heads = 0;  ///< Hq
  int64_t kv_heads = 0;     ///< Hkv
  int64_t head_size = 0;    ///< D
  int64_t group() const { return query_heads / kv_heads; }
};

/// Refuses a tensor whose shape is not `expected`; a dimension of −1 in `expected` fits anything.
void CheckShape(const char* name, const Tensor& tensor, const Shape& expected, const char* meaning);

void CheckType(const char* name, const Tensor& tensor, ElementType expected);
/// float32 or float16.
void CheckFloat(const char* name, const Tensor& tensor);

/// Product of sizes, each at least 0; refuses what does not fit into 62 bits.
int64_t CheckedProduct(std::initializer_list<int64_t> factors);

/// threshold: float32 [Hkv], or [Hkv, D] unless rows are held whole; finite and at least 0. Absent is θ = 0.
void CheckThreshold(const Tensor& threshold, int64_t kv_heads, int64_t head_size, bool row_granularity);

/// row_weight: float32 [Hkv, D].
void CheckRowWeight(const Tensor& row_weight, int64_t kv_heads, int64_t head_size);

/// attention_bias: float [B or 1, Hq or 1, S, columns].
void CheckAttentionBias(const Tensor& bias, const Geometry& geometry, int64_t columns);

/// head_sink: float [Hq].
void CheckHeadSink(const Tensor& head_sink, int64_t query_heads);

}  // namespace deltallm
