// Micro-kernels over the packed caches of docs/cache-format.md, as a table of plain functions like kernels.h.
//
// The integer arithmetic is the same for every instruction set, bit by bit; only float sums may differ in order.
#pragma once

#include <cstdint>

namespace deltallm {

constexpr int64_t kTileRows = 16;
constexpr int64_t kBlockRows = 128;
/// Head sizes up to here keep every int32 sum exact; the callers refuse larger ones.
constexpr int64_t kMostPackedHeadSize = 1024;

// The largest code of each product. A range of values below kSmallestRange counts as zeros: what it would add is far
// below what float32 sums keep, and it could not be divided by.
constexpr float kMostQuery = 16256.0f;
constexpr float kMostTileWeight = 16383.0f;
constexpr float kMostBlockQuery = 127.0f;
constexpr float kMostBlockWeight = 255.0f;
constexpr float kSmallestRange = 1e-30f;

/// Query rows as integers. `value` = 128·high + low, |value| ≤ 16256, and query ≈ step · value.
/// Rows are `stride` apart, a multiple of 64; entries from the head size on are 0.
struct QuantizedQuery {
  int16_t* value;
  int8_t* high;
  int8_t* low;
  float* step;   ///< [heads]; 0 for a row of zeros (below kSmallestRange), NaN for a row that is not finite
  int32_t* sum;  ///< [heads], Σ value
  int64_t stride;
};

/// What the caller reads next: a call asks the memory for these bytes while it works, spread evenly. A hint; never
/// read.
struct Ahead {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;

  /// Parts [from, to) of `parts` equal ones.
  Ahead Part(int64_t from, int64_t to, int64_t parts) const {
    return {data + bytes * from / parts, bytes * to / parts - bytes * from / parts};
  }
};

struct PackedKernels {
  const char* isa;

  /// value = rint(query · (16256 / max |query|)), step = max |query| / 16256.
  void (*quantize_query)(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                         const QuantizedQuery& out);

  /// scores[h·score_stride + j] = step[h] · scale[j] · Σ_c value[h][c] · code[j][c] for the 16·tiles rows of full key
  /// tiles that lie one after the other.
  void (*score_tiles)(const QuantizedQuery& query, int64_t heads, const uint8_t* tiles, int64_t count,
                      int64_t head_size, float* scores, int64_t score_stride, const Ahead& ahead);

  /// sum[h·sum_stride + c] += Σ_j weights[h·weight_stride + j] · scale[j] · code[j][c] over at most 8 full value tiles.
  /// weight·scale is rounded to step · (0 … 16383), step = its maximum over the call's rows / 16383. Both ≥ 0; a NaN
  /// or infinite product makes the head's sums NaN.
  void (*add_tiles)(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* tiles, int64_t count,
                    int64_t head_size, float* sum, int64_t sum_stride, const Ahead& ahead);

  /// scores of the 128 rows of an int4 key block: Σ_c query[h][c]·zero[c] + step · Σ_c value[c] · code[j][c], with
  /// query[h][c]·scale[c] rounded to step · (−127 … 127).
  void (*score_block)(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                      float* scores, int64_t score_stride, const Ahead& ahead);

  /// sum += over the 128 rows of an int4 value block: Σ_j weight·zero[j] + step · Σ_j value[j] · code[j][c], with
  /// weight·scale[j] rounded to step · (0 … 255).
  void (*add_block)(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                    float* sum, int64_t sum_stride, const Ahead& ahead);
};

extern const PackedKernels kScalarPackedKernels;
extern const PackedKernels kAvx2PackedKernels;
extern const PackedKernels kAvx512VnniPackedKernels;
extern const PackedKernels kNeonPackedKernels;
extern const PackedKernels kNeonDotprodPackedKernels;

}  // namespace deltallm
