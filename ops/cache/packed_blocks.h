// Sealed blocks of an int4 cache: 128 coded rows at 4 bits, docs/cache-format.md.
#pragma once

#include <cstdint>

#include "cache/packed_rows.h"

namespace deltallm {

/// Rows [first, last) of a block as float32, D floats apart.
void DecodeKeyBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, float* rows);
void DecodeValueBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, float* rows);

/// The tags of a key block, uint16 [128], as bytes.
inline const uint8_t* BlockTags(const PackedLayout& layout, const uint8_t* block) {
  return block + (kBlockRows / 2 + 4) * layout.channels();
}
inline uint16_t ReadBlockTag(const PackedLayout& layout, const uint8_t* block, int64_t row) {
  uint16_t tag;
  std::memcpy(&tag, BlockTags(layout, block) + 2 * row, sizeof tag);
  return tag;
}

/// A copy of a value block in which the rows outside [first, last) are zeros: they may hold anything.
void MaskValueBlock(const PackedLayout& layout, const uint8_t* block, int64_t first, int64_t last, uint8_t* masked);

}  // namespace deltallm
