// The header of a packed cache: the value tags of its first slots, docs/cache-format.md.
#pragma once

#include <cstdint>

#include "cache/packed_layout.h"

namespace deltallm {

inline uint16_t HeaderVersion(CacheFormat format) { return format == CacheFormat::kInt8 ? 0xD801 : 0xD401; }

inline uint16_t LayoutCheck(const PackedLayout& layout) {
  return static_cast<uint16_t>((layout.sinks + 31 * layout.window) % 65536);
}

struct PackedHeader {
  uint16_t version = 0;
  uint16_t layout_check = 0;
  PackedState state;
};

/// Fields that a short slab has no slot for are as they should be, with nothing coded.
PackedHeader ReadHeader(const PackedLayout& layout, const uint8_t* value_slab);

/// Asks the memory for the header.
inline void PrefetchHeader(const PackedLayout& layout, const uint8_t* value_slab) {
  // The value tags of the first tile end it.
  if (layout.whole_tiles() > 0) __builtin_prefetch(value_slab + layout.tile_bytes() - 2 * kTileRows);
}

/// As much of the header as the slab has slots for.
void WriteHeader(const PackedLayout& layout, const PackedState& state, uint8_t* value_slab);

}  // namespace deltallm
