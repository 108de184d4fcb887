// The float caches, docs/spec.md section 7: [batch, KV heads, capacity, head size] of float32 or float16, row by row.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace deltallm {

/// One of the two tensors (keys or values) of a layer's cache. `Byte` is char or const char.
template <typename Byte>
struct FloatCacheOf {
  Byte* data = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t capacity = 0;
  int64_t head_size = 0;

  int64_t element_size() const { return type == ElementType::kFloat32 ? 4 : 2; }
  int64_t row_bytes() const { return head_size * element_size(); }
  /// Row `row` of (batch, KV head) number `head`, counted over the batch.
  Byte* Row(int64_t head, int64_t row) const { return data + (head * capacity + row) * row_bytes(); }
};

using FloatCache = FloatCacheOf<char>;
using ConstFloatCache = FloatCacheOf<const char>;

inline ConstFloatCache AsConst(const FloatCache& cache) {
  return {cache.data, cache.type, cache.capacity, cache.head_size};
}

/// A stored row as float32: the row itself where it is float32, else converted into `buffer` (head_size floats).
inline const float* ReadRow(const Kernels& kernels, ElementType type, const char* row, int64_t head_size,
                            float* buffer) {
  if (type == ElementType::kFloat32) return reinterpret_cast<const float*>(row);
  kernels.half_to_float(reinterpret_cast<const uint16_t*>(row), head_size, buffer);
  return buffer;
}

/// Stores a float32 row, rounding it to the cache's type.
inline void WriteRow(const Kernels& kernels, ElementType type, const float* values, int64_t head_size, char* row) {
  if (type == ElementType::kFloat32) {
    std::memmove(row, values, static_cast<size_t>(head_size) * sizeof(float));
  } else {
    kernels.float_to_half(values, head_size, reinterpret_cast<uint16_t*>(row));
  }
}

inline void ScoreRows(const Kernels& kernels, ElementType type, const float* query, int64_t heads, const char* key,
                      int64_t rows, int64_t head_size, float* scores, int64_t score_stride) {
  if (type == ElementType::kFloat32) {
    kernels.score_rows_f32(query, head_size, heads, {reinterpret_cast<const float*>(key), head_size}, rows, head_size,
                           scores, score_stride);
  } else {
    kernels.score_rows_f16(query, head_size, heads, {reinterpret_cast<const uint16_t*>(key), head_size}, rows,
                           head_size, scores, score_stride);
  }
}

inline void AddRows(const Kernels& kernels, ElementType type, const float* weights, int64_t weight_stride,
                    int64_t heads, const char* value, int64_t rows, int64_t head_size, float* sum) {
  if (type == ElementType::kFloat32) {
    kernels.add_rows_f32(weights, weight_stride, heads, {reinterpret_cast<const float*>(value), head_size}, rows,
                         head_size, sum, head_size);
  } else {
    kernels.add_rows_f16(weights, weight_stride, heads, {reinterpret_cast<const uint16_t*>(value), head_size}, rows,
                         head_size, sum, head_size);
  }
}

}  // namespace deltallm
