// The packed kernels in plain C++: what every other instruction set is tested against, integers bit by bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/packed_kernels.h"

namespace deltallm {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t PaddedSize(int64_t head_size) { return (head_size + 3) / 4 * 4; }

/// Pointers into caches need no alignment.
float HalfAt(const uint8_t* halves, int64_t i) {
  uint16_t half;
  std::memcpy(&half, halves + 2 * i, sizeof half);
  return HalfToFloat(half);
}

/// A magnitude's quantiser: x ≈ step · Code(x). A range too small to divide by counts as zero; one that is not finite
/// has codes 0 and step NaN, so that no conversion of a NaN is ever reached and every result is NaN.
class Quantizer {
 public:
  /// `largest` is the maximum of |x| over the range, NaN if any x is NaN.
  Quantizer(float largest, float most) {
    if (!(largest < kInfinity)) {
      step_ = kNaN;
    } else if (largest >= kSmallestRange) {
      step_ = largest / most;
      inverse_ = most / largest;
    }
  }
  float step() const { return step_; }
  int32_t Code(float x) const { return inverse_ == 0.0f ? 0 : static_cast<int32_t>(std::lrint(x * inverse_)); }

 private:
  float step_ = 0.0f;
  float inverse_ = 0.0f;
};

/// The larger of two magnitudes, NaN if either is NaN.
float LargerOrNaN(float a, float b) { return std::isnan(a) || a > b ? a : b; }

void QuantizeQuery(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                   const QuantizedQuery& out) {
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    float largest = 0.0f;
    for (int64_t c = 0; c < head_size; ++c) largest = LargerOrNaN(largest, std::fabs(row[c]));
    const Quantizer quantizer(largest, kMostQuery);
    int32_t sum = 0;
    for (int64_t c = 0; c < out.stride; ++c) {
      const int32_t value = c < head_size ? quantizer.Code(row[c]) : 0;
      // Rounded to the nearest multiple of 128: low is −64 … 63.
      const int32_t high = (value + 64) >> 7;
      out.value[h * out.stride + c] = static_cast<int16_t>(value);
      out.high[h * out.stride + c] = static_cast<int8_t>(high);
      out.low[h * out.stride + c] = static_cast<int8_t>(value - 128 * high);
      sum += value;
    }
    out.step[h] = quantizer.step();
    out.sum[h] = sum;
  }
}

void ScoreTiles(const QuantizedQuery& query, int64_t heads, const uint8_t* tiles, int64_t count, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead&) {
  const int64_t padded = PaddedSize(head_size);
  for (int64_t j = 0; j < count * kTileRows; ++j) {
    const uint8_t* tile = tiles + j / kTileRows * kTileRows * (padded + 4);
    const int64_t r = j % kTileRows;
    const float scale = HalfAt(tile + kTileRows * padded, r);
    for (int64_t h = 0; h < heads; ++h) {
      const int16_t* value = query.value + h * query.stride;
      int64_t sum = 0;
      for (int64_t c = 0; c < head_size; ++c) {
        const int32_t code = tile[(c / 4 * kTileRows + r) * 4 + c % 4] - 128;
        sum += value[c] * code;
      }
      scores[h * score_stride + j] = query.step[h] * scale * static_cast<float>(sum);
    }
  }
}

void AddTiles(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* tiles, int64_t count,
              int64_t head_size, float* sum, int64_t sum_stride, const Ahead&) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t tile_bytes = kTileRows * (padded + 4);
  const int64_t rows = count * kTileRows;
  for (int64_t h = 0; h < heads; ++h) {
    float scaled[kBlockRows];
    float largest = 0.0f;
    for (int64_t j = 0; j < rows; ++j) {
      const uint8_t* scales = tiles + j / kTileRows * tile_bytes + kTileRows * padded;
      scaled[j] = std::fabs(weights[h * weight_stride + j] * HalfAt(scales, j % kTileRows));
      largest = LargerOrNaN(largest, scaled[j]);
    }
    const Quantizer quantizer(largest, kMostTileWeight);
    int32_t values[kBlockRows];
    for (int64_t j = 0; j < rows; ++j) values[j] = quantizer.Code(scaled[j]);
    for (int64_t c = 0; c < head_size; ++c) {
      int32_t total = 0;
      for (int64_t j = 0; j < rows; ++j) {
        const int64_t r = j % kTileRows;
        const uint8_t code = tiles[j / kTileRows * tile_bytes + (r / 4 * padded + c) * 4 + r % 4];
        total += values[j] * static_cast<int8_t>(code);
      }
      sum[h * sum_stride + c] += quantizer.step() * static_cast<float>(total);
    }
  }
}

void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead&) {
  const int64_t padded = PaddedSize(head_size);
  const uint8_t* scales = block + kBlockRows / 2 * padded;
  const uint8_t* zeros = scales + 2 * padded;
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    float start = 0.0f;
    float largest = 0.0f;
    for (int64_t c = 0; c < head_size; ++c) {
      start += row[c] * HalfAt(zeros, c);
      largest = LargerOrNaN(largest, std::fabs(row[c] * HalfAt(scales, c)));
    }
    const Quantizer quantizer(largest, kMostBlockQuery);
    int32_t totals[kBlockRows] = {};
    for (int64_t c = 0; c < head_size; ++c) {
      const int32_t value = quantizer.Code(row[c] * HalfAt(scales, c));
      for (int64_t j = 0; j < kBlockRows; ++j) {
        const uint8_t pair = block[((j / 32 * (padded / 4) + c / 4) * 16 + j % 16) * 4 + c % 4];
        totals[j] += value * (j / 16 % 2 == 0 ? pair & 15 : pair >> 4);
      }
    }
    for (int64_t j = 0; j < kBlockRows; ++j) {
      scores[h * score_stride + j] = start + quantizer.step() * static_cast<float>(totals[j]);
    }
  }
}

void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead&) {
  const int64_t padded = PaddedSize(head_size);
  const uint8_t* scales = block + kBlockRows / 2 * padded;
  const uint8_t* zeros = scales + 2 * kBlockRows;
  for (int64_t h = 0; h < heads; ++h) {
    const float* weight = weights + h * weight_stride;
    float scaled[kBlockRows];
    float start = 0.0f;
    float largest = 0.0f;
    for (int64_t j = 0; j < kBlockRows; ++j) {
      start += weight[j] * HalfAt(zeros, j);
      scaled[j] = std::fabs(weight[j] * HalfAt(scales, j));
      largest = LargerOrNaN(largest, scaled[j]);
    }
    const Quantizer quantizer(largest, kMostBlockWeight);
    int32_t values[kBlockRows];
    for (int64_t j = 0; j < kBlockRows; ++j) values[j] = quantizer.Code(scaled[j]);
    for (int64_t c = 0; c < head_size; ++c) {
      int32_t total = 0;
      for (int64_t j = 0; j < kBlockRows; ++j) {
        const uint8_t pair = block[(j / 8 * padded + c) * 4 + j % 4];
        total += values[j] * (j / 4 % 2 == 0 ? pair & 15 : pair >> 4);
      }
      sum[h * sum_stride + c] += start + quantizer.step() * static_cast<float>(total);
    }
  }
}

}  // namespace

const PackedKernels kScalarPackedKernels = {"scalar", QuantizeQuery, ScoreTiles, AddTiles, ScoreBlock, AddBlock};

}  // namespace deltallm
