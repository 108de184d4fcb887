// The prefill kernels in plain C++: what every other instruction set is tested against.
//
//     query tile   [6][D]
//     key panel    [D][16]
//     value block  [512][D]
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kRows = PrefillArithmetic::kTileRows;
constexpr int64_t kPanelKeys = 16;

float Element(const void* row, ElementType type, int64_t c) {
  return type == ElementType::kFloat32 ? static_cast<const float*>(row)[c]
                                       : HalfToFloat(static_cast<const uint16_t*>(row)[c]);
}

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t QueryTileBytes(int64_t head_size) { return Aligned(kRows * head_size * 4); }
int64_t KeyPanelBytes(int64_t head_size) { return Aligned(kPanelKeys * head_size * 4); }
int64_t ValueBlockBytes(int64_t head_size) { return Aligned(PrefillArithmetic::kMostColumns * head_size * 4); }

void PackQuery(const float* rows, int64_t count, int64_t head_size, void* tile) {
  auto* out = static_cast<float*>(tile);
  std::copy_n(rows, count * head_size, out);
  std::fill(out + count * head_size, out + kRows * head_size, 0.0f);
}

void PackKeys(const void* const* rows, ElementType type, int64_t count, int64_t head_size, void* panel) {
  auto* out = static_cast<float*>(panel);
  for (int64_t c = 0; c < head_size; ++c) {
    for (int64_t j = 0; j < kPanelKeys; ++j) {
      out[c * kPanelKeys + j] = j < count ? Element(rows[j], type, c) : 0.0f;
    }
  }
}

void PackValues(const void* rows, ElementType type, int64_t first, int64_t count, int64_t head_size, void* block) {
  auto* out = static_cast<float*>(block) + first * head_size;
  for (int64_t i = 0; i < count * head_size; ++i) out[i] = Element(rows, type, i);
}

void Scores(const void* tile, int64_t rows, const void* panels, int64_t columns, int64_t head_size, float* scores,
            int64_t score_stride) {
  const auto* query = static_cast<const float*>(tile);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * score_stride;
    std::fill_n(row, columns, 0.0f);
    for (int64_t j = 0; j < columns; ++j) {
      const auto* keys =
          reinterpret_cast<const float*>(static_cast<const char*>(panels) + j / kPanelKeys * KeyPanelBytes(head_size));
      for (int64_t c = 0; c < head_size; ++c)
        row[j] += query[r * head_size + c] * keys[c * kPanelKeys + j % kPanelKeys];
    }
  }
}

uint32_t Softmax(float* scores, ColumnRange seen, ColumnRange written, const float* tokens, float skip_below,
                 SoftmaxRow* row, void* weights) {
  auto* out = static_cast<float*>(weights);
  std::fill(out + written.begin, out + seen.begin, 0.0f);
  std::fill(out + seen.end, out + written.end, 0.0f);
  float top = row->maximum;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    if (scores[j] > top) top = scores[j];
  }
  row->keep = row->maximum > kNegativeInfinity ? std::exp2(row->maximum - top) : 1.0f;
  row->denominator *= row->keep;
  row->maximum = top;
  const float offset = top == kNegativeInfinity ? 0.0f : top;
  uint32_t stretches = 0;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    const float e = std::exp2(scores[j] - offset);
    const float weight = tokens == nullptr ? e : tokens[j] * e;
    row->denominator += weight;
    out[j] = e < skip_below ? 0.0f : weight;
    if (out[j] != 0.0f) stretches |= 1u << (j / 64);
  }
  return stretches;
}

void ConvertWeights(const float* weights, ColumnRange columns, void* converted) {
  auto* out = static_cast<float*>(converted);
  if (out != weights) std::copy(weights + columns.begin, weights + columns.end, out + columns.begin);
}

void AddValues(const void* weights, int64_t weight_stride, int64_t rows, const void* block, ColumnRange keys,
               int64_t head_size, float* sum, int64_t sum_stride) {
  const auto* values = static_cast<const float*>(block);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = static_cast<const float*>(weights) + r * weight_stride;
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      for (int64_t c = 0; c < head_size; ++c) sum[r * sum_stride + c] += row[j] * values[j * head_size + c];
    }
  }
}

void SoftmaxAndAddValues(float* scores, int64_t score_stride, int64_t rows, const ColumnRange* seen, SoftmaxRow* row,
                         const void* block, int64_t head_size, float* sum, int64_t sum_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    float* weights = scores + r * score_stride;
    float* sums = sum + r * sum_stride;
    Softmax(weights, seen[r], seen[r], nullptr, 0.0f, row + r, weights);
    for (int64_t c = 0; c < head_size; ++c) sums[c] *= row[r].keep;
    AddValues(weights, score_stride, 1, block, seen[r], head_size, sums, sum_stride);
  }
}

constexpr PrefillArithmetic kFloat32 = {
    kPanelKeys, 4,          1,      QueryTileBytes, KeyPanelBytes,  ValueBlockBytes, PackQuery,
    PackKeys,   PackValues, Scores, Softmax,        ConvertWeights, AddValues,       SoftmaxAndAddValues};

}  // namespace

const PrefillKernels kScalarPrefillKernels = {"scalar", &kFloat32, nullptr, nullptr};

}  // namespace deltallm
