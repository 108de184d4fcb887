// The kernels in plain C++: what every other instruction set is tested against.
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace deltallm {
namespace {

inline float Load(float x) { return x; }
inline float Load(uint16_t x) { return HalfToFloat(x); }

template <typename T>
void ScoreRows(const float* query, int64_t query_stride, int64_t heads, RowsOf<T> key, int64_t rows, int64_t head_size,
               float* scores, int64_t score_stride) {
  for (int64_t j = 0; j < rows; ++j) {
    const T* row = key.data + j * key.stride;
    for (int64_t h = 0; h < heads; ++h) {
      float sum = 0.0f;
      for (int64_t c = 0; c < head_size; ++c) {
        sum += query[h * query_stride + c] * Load(row[c]);
      }
      scores[h * score_stride + j] = sum;
    }
  }
}

template <typename T>
void AddRows(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<T> value, int64_t rows,
             int64_t head_size, float* sum, int64_t sum_stride) {
  for (int64_t j = 0; j < rows; ++j) {
    const T* row = value.data + j * value.stride;
    for (int64_t h = 0; h < heads; ++h) {
      const float weight = weights[h * weight_stride + j];
      for (int64_t c = 0; c < head_size; ++c) {
        sum[h * sum_stride + c] += weight * Load(row[c]);
      }
    }
  }
}

float Maximum(const float* x, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) {
    if (x[i] > largest) largest = x[i];
  }
  return largest;
}

float Exp2AndSum(float* x, int64_t n, float offset) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    x[i] = std::exp2(x[i] - offset);
    sum += x[i];
  }
  return sum;
}

float MultiplyTokensAndSum(float* x, const uint16_t* tags, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    x[i] *= static_cast<float>(tags[i] & 0x7fff);
    sum += x[i];
  }
  return sum;
}

void Softcap(float* x, int64_t n, float cap) {
  for (int64_t i = 0; i < n; ++i) x[i] = cap * std::tanh(x[i] / cap);
}

void Scale(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void HalfToFloatRow(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = HalfToFloat(x[i]);
}

void FloatToHalfRow(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = FloatToHalf(x[i]);
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",
    ScoreRows<float>,
    ScoreRows<uint16_t>,
    AddRows<float>,
    AddRows<uint16_t>,
    Maximum,
    Exp2AndSum,
    MultiplyTokensAndSum,
    Softcap,
    Scale,
    HalfToFloatRow,
    FloatToHalfRow,
};

}  // namespace deltallm
