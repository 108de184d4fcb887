// The micro-kernels of one instruction set, as a table of plain functions.
//
// None of them allocates, starts a thread or keeps state. Every one computes any part of its result: the caller chooses
// the rows, and strides (in elements) lead from one row to the next. Sizes may be 0. Pointers need no alignment.
// `scalar.cc` says what each function computes; the other sets agree with it up to the order of float32 sums.
#pragma once

#include <cstdint>

namespace deltallm {

enum class ElementType : uint8_t { kFloat32, kFloat16, kInt32, kInt64, kBool, kUint8, kOther };

/// Rows of one (batch, KV head) of a cache: `stride` elements of float32 or float16 (as uint16_t bits) per row.
template <typename T>
struct RowsOf {
  const T* data;
  int64_t stride;
};

struct PackedCoding;
struct PackedKernels;
struct PrefillKernels;

struct Kernels {
  const char* isa;

  /// scores[h·score_stride + j] = Σ_c query[h·query_stride + c] · key[j][c] for h < heads, j < rows, c < head_size.
  void (*score_rows_f32)(const float* query, int64_t query_stride, int64_t heads, RowsOf<float> key, int64_t rows,
                         int64_t head_size, float* scores, int64_t score_stride);
  void (*score_rows_f16)(const float* query, int64_t query_stride, int64_t heads, RowsOf<uint16_t> key, int64_t rows,
                         int64_t head_size, float* scores, int64_t score_stride);

  /// sum[h·sum_stride + c] += Σ_j weights[h·weight_stride + j] · value[j][c].
  void (*add_rows_f32)(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<float> value, int64_t rows,
                       int64_t head_size, float* sum, int64_t sum_stride);
  void (*add_rows_f16)(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<uint16_t> value, int64_t rows,
                       int64_t head_size, float* sum, int64_t sum_stride);

  /// The largest of x[0..n); −∞ for n = 0. A NaN may be left out: it shows up in exp2_and_sum.
  float (*maximum)(const float* x, int64_t n);
  /// x[i] = 2^(x[i] − offset) for x[i] ≤ offset, exactly 0 for x[i] = −∞; returns the sum. NaN stays NaN.
  float (*exp2_and_sum)(float* x, int64_t n, float offset);
  /// x[i] = x[i] · (tags[i] & 0x7fff); returns the sum. `n` is a multiple of 16.
  float (*multiply_tokens_and_sum)(float* x, const uint16_t* tags, int64_t n);
  /// x[i] = cap · tanh(x[i] / cap).
  void (*softcap)(float* x, int64_t n, float cap);
  /// x[i] = x[i] · factor.
  void (*scale)(float* x, int64_t n, float factor);

  /// Conversions; float → half rounds to nearest even, overflow gives infinity, NaN stays NaN.
  void (*half_to_float)(const uint16_t* x, int64_t n, float* y);
  void (*float_to_half)(const float* x, int64_t n, uint16_t* y);

  /// The kernels that read and that code packed caches, and those over blocks of queries, that go with this set;
  /// core/select_kernels.cc fills them in, in the tables below they are null.
  const PackedKernels* packed = nullptr;
  const PackedCoding* coding = nullptr;
  const PrefillKernels* prefill = nullptr;
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

}  // namespace deltallm
