#include "cache/packed_blocks.h"

#include "kernels/half.h"

namespace deltallm {
namespace {

uint16_t LoadHalf(const uint8_t* halves, int64_t i) {
  uint16_t half;
  std::memcpy(&half, halves + 2 * i, sizeof half);
  return half;
}

/// Channels of a key block's scales and zeros as float32.
struct KeyScales {
  float scale[kMostPackedHeadSize];
  float zero[kMostPackedHeadSize];
  KeyScales(const PackedLayout& layout, const uint8_t* block) {
    const uint8_t* halves = block + kBlockRows / 2 * layout.channels();
    for (int64_t c = 0; c < layout.head_size; ++c) {
      scale[c] = HalfToFloat(LoadHalf(halves, c));
      zero[c] = HalfToFloat(LoadHalf(halves, layout.channels() + c));
    }
  }
};

}  // namespace

void DecodeKeyBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, float* rows) {
  const KeyScales scales(layout, block);
  const int64_t head_size = layout.head_size;
  for (int64_t j = first; j < last; ++j, rows += head_size) {
    const uint8_t* codes = block + j / 32 * kTileRows * layout.channels() + 4 * (j % kTileRows);
    const int shift = j / kTileRows % 2 == 0 ? 0 : 4;
    for (int64_t c = 0; c < head_size; ++c) {
      const int32_t code = codes[c / 4 * 4 * kTileRows + c % 4] >> shift & 15;
      rows[c] = scales.zero[c] + static_cast<float>(code) * scales.scale[c];
    }
  }
}

void DecodeValueBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, float* rows) {
  const int64_t head_size = layout.head_size;
  const uint8_t* scales = block + kBlockRows / 2 * layout.channels();
  for (int64_t j = first; j < last; ++j, rows += head_size) {
    const float scale = HalfToFloat(LoadHalf(scales, j));
    const float zero = HalfToFloat(LoadHalf(scales, kBlockRows + j));
    const uint8_t* codes = block + j / 8 * 4 * layout.channels() + j % 4;
    const int shift = j / 4 % 2 == 0 ? 0 : 4;
    for (int64_t c = 0; c < head_size; ++c) {
      rows[c] = zero + static_cast<float>(codes[4 * c] >> shift & 15) * scale;
    }
  }
}

void MaskValueBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, uint8_t* masked) {
  std::memcpy(masked, block, static_cast<size_t>(layout.block_bytes()));
  uint8_t* scales = masked + kBlockRows / 2 * layout.channels();
  for (uint8_t* halves : {scales, scales + 2 * kBlockRows}) {
    std::memset(halves, 0, static_cast<size_t>(2 * first));
    std::memset(halves + 2 * last, 0, static_cast<size_t>(2 * (kBlockRows - last)));
  }
}

}  // namespace deltallm
