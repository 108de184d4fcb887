// Single rows of a packed cache's row area.
#pragma once

#include <cstdint>
#include <cstring>

#include "cache/packed_layout.h"
#include "kernels/packed_coding.h"

namespace deltallm {

void ReadKeyRow(const PackedLayout& layout, const uint8_t* slab, int64_t slot, PackedRow* row);
void ReadValueRow(const PackedCoding& coding, const PackedLayout& layout, const uint8_t* slab, int64_t slot,
                  PackedRow* row);
void WriteKeyRow(const PackedLayout& layout, uint8_t* slab, int64_t slot, const PackedRow& row, uint16_t tag);
/// The tag becomes 0, but for the slots of the header, whose tags stay.
void WriteValueRow(const PackedCoding& coding, const PackedLayout& layout, uint8_t* slab, int64_t slot,
                   const PackedRow& row);

/// Byte of a row's tag in its slab, keys and values alike.
inline int64_t TagOffset(const PackedLayout& layout, int64_t slot) {
  const int64_t tile = slot / kTileRows;
  if (tile >= layout.whole_tiles()) return (slot + 1) * layout.row_bytes() - 2;
  return (tile + 1) * layout.tile_bytes() - 2 * (kTileRows - slot % kTileRows);
}
inline uint16_t ReadTag(const PackedLayout& layout, const uint8_t* slab, int64_t slot) {
  uint16_t tag;
  std::memcpy(&tag, slab + TagOffset(layout, slot), sizeof tag);
  return tag;
}
inline void WriteTag(const PackedLayout& layout, uint8_t* slab, int64_t slot, uint16_t tag) {
  std::memcpy(slab + TagOffset(layout, slot), &tag, sizeof tag);
}

/// Key tags of granularity row: how many tokens a row stands for, and whether its first one was held as well.
inline int32_t TokensOf(uint16_t tag) { return tag & 0x7fff; }
inline bool RepeatsKey(uint16_t tag) { return (tag & 0x8000) != 0; }
/// Whether a key row stands for several tokens; while it is the last one, a residual lies behind its value.
inline bool HoldsRun(const PackedLayout& layout, const uint8_t* key_slab, int64_t slot) {
  return TokensOf(ReadTag(layout, key_slab, slot)) > 1;
}

/// Makes a row's bytes 0, the tag too.
void ClearKeyRow(const PackedLayout& layout, uint8_t* slab, int64_t slot);
void ClearValueRow(const PackedLayout& layout, uint8_t* slab, int64_t slot);

/// Puts slots [first, last), which lie in one tile's worth of the slab, where they belong in a whole tile. For the rows
/// behind the last whole tile, and for tiles some of whose rows may hold anything.
void GatherKeyTile(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, uint8_t* tile);
void GatherValueTile(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, uint8_t* tile);

/// Puts what an `old` slab holds into a slab of at least its capacity; the rest of it becomes 0.
/// Rows are copied from slots [0, rows), blocks [0, blocks).
void CopyKeySlab(const PackedLayout& old_layout, const uint8_t* old_slab, int64_t rows, int64_t blocks,
                 const PackedLayout& layout, uint8_t* slab);
void CopyValueSlab(const PackedLayout& old_layout, const uint8_t* old_slab, int64_t rows, int64_t blocks,
                   const PackedLayout& layout, uint8_t* slab);

/// Rows [first, last) of a tile as float32, `stride` apart: rows[r][c] for c < head_size.
void DecodeKeyRows(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, float* rows);
void DecodeValueRows(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, float* rows);

}  // namespace deltallm
