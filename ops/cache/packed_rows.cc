#include "cache/packed_rows.h"

namespace deltallm {
namespace {

/// Key codes lie shifted by 128, as the unsigned operand that integer dot products want: the top bit flipped.
constexpr uint64_t kKeyShift = 0x8080808080808080u;

/// For rows that are moved one at a time, outside of any bulk work.
const PackedCoding& kPlain = kScalarPackedCoding;

enum class Kind { kKey, kValue };

/// Where a row lies: four codes of a key lie together, those of a value one by one.
struct RowPlace {
  int64_t codes;   ///< byte of channel 0
  int64_t stride;  ///< bytes from a group of four channels (key), or from a channel (value), to the next
  int64_t scale;   ///< byte of the scale; the tag is at TagOffset
};

template <Kind kKind>
RowPlace Place(const PackedLayout& layout, int64_t slot) {
  const int64_t tile = slot / kTileRows;
  const int64_t r = slot % kTileRows;
  if (tile >= layout.whole_tiles()) {
    const int64_t begin = slot * layout.row_bytes();
    return {begin, kKind == Kind::kKey ? 4 : 1, begin + layout.channels()};
  }
  const int64_t begin = tile * layout.tile_bytes();
  const int64_t scale = begin + kTileRows * layout.channels() + 2 * r;
  if (kKind == Kind::kKey) return {begin + 4 * r, 4 * kTileRows, scale};
  return {begin + r / 4 * 4 * layout.channels() + r % 4, 4, scale};
}

template <Kind kKind>
void ReadRow(const PackedCoding& coding, const PackedLayout& layout, const uint8_t* slab, int64_t slot,
             PackedRow* row) {
  const RowPlace place = Place<kKind>(layout, slot);
  const uint8_t* codes = slab + place.codes;
  const int64_t channels = layout.channels();
  if (kKind == Kind::kKey) {
    for (int64_t c = 0; c < channels; c += 4, codes += place.stride) {
      uint32_t group;
      std::memcpy(&group, codes, sizeof group);
      group ^= static_cast<uint32_t>(kKeyShift);
      std::memcpy(row->codes + c, &group, sizeof group);
    }
  } else if (place.stride == 1) {
    std::memcpy(row->codes, codes, static_cast<size_t>(channels));
  } else {
    coding.read_value(codes - slot % 4, slot % 4, channels, row->codes);
  }
  std::memcpy(&row->scale, slab + place.scale, sizeof row->scale);
}

template <Kind kKind>
void WriteRow(const PackedCoding& coding, const PackedLayout& layout, uint8_t* slab, int64_t slot,
              const PackedRow& row) {
  const RowPlace place = Place<kKind>(layout, slot);
  uint8_t* codes = slab + place.codes;
  const int64_t channels = layout.channels();
  if (kKind == Kind::kKey) {
    // Two groups in one load, because it is the stores that count.
    int64_t c = 0;
    for (; c + 8 <= channels; c += 8, codes += 2 * place.stride) {
      uint64_t groups;
      std::memcpy(&groups, row.codes + c, sizeof groups);
      groups ^= kKeyShift;
      const auto low = static_cast<uint32_t>(groups);
      const auto high = static_cast<uint32_t>(groups >> 32);
      std::memcpy(codes, &low, sizeof low);
      std::memcpy(codes + place.stride, &high, sizeof high);
    }
    if (c < channels) {
      uint32_t group;
      std::memcpy(&group, row.codes + c, sizeof group);
      group ^= static_cast<uint32_t>(kKeyShift);
      std::memcpy(codes, &group, sizeof group);
    }
  } else if (place.stride == 1) {
    std::memcpy(codes, row.codes, static_cast<size_t>(channels));
  } else {
    coding.write_value(row.codes, channels, codes - slot % 4, slot % 4);
  }
  std::memcpy(slab + place.scale, &row.scale, sizeof row.scale);
}

template <Kind kKind>
void ClearRow(const PackedLayout& layout, uint8_t* slab, int64_t slot) {
  PackedRow row;
  std::memset(row.codes, kKind == Kind::kKey ? -128 : 0, static_cast<size_t>(layout.channels()));
  row.scale = 0;
  WriteRow<kKind>(kPlain, layout, slab, slot, row);
  WriteTag(layout, slab, slot, 0);
}

/// A layout of one whole tile.
PackedLayout OneTile(const PackedLayout& layout) {
  PackedLayout tile = layout;
  tile.format = CacheFormat::kInt8;
  tile.SetCapacity(kTileRows);
  return tile;
}

template <Kind kKind>
void GatherTile(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, uint8_t* tile) {
  const PackedLayout target = OneTile(layout);
  PackedRow row;
  for (int64_t slot = first; slot < last; ++slot) {
    ReadRow<kKind>(kPlain, layout, slab, slot, &row);
    WriteRow<kKind>(kPlain, target, tile, slot % kTileRows, row);
    WriteTag(target, tile, slot % kTileRows, ReadTag(layout, slab, slot));
  }
}

template <Kind kKind>
void CopySlab(const PackedLayout& old_layout, const uint8_t* old_slab, int64_t rows, int64_t blocks,
              const PackedLayout& layout, uint8_t* slab) {
  const int64_t tiles = std::min(rows / kTileRows, old_layout.whole_tiles());
  const int64_t tile_bytes = tiles * layout.tile_bytes();
  if (tiles > 0) std::memcpy(slab, old_slab, static_cast<size_t>(tile_bytes));
  std::memset(slab + tile_bytes, 0, static_cast<size_t>(layout.slab_bytes() - tile_bytes));
  PackedRow row;
  for (int64_t slot = tiles * kTileRows; slot < rows; ++slot) {
    ReadRow<kKind>(kPlain, old_layout, old_slab, slot, &row);
    WriteRow<kKind>(kPlain, layout, slab, slot, row);
    WriteTag(layout, slab, slot, ReadTag(old_layout, old_slab, slot));
  }
  if (blocks > 0) {
    std::memcpy(slab + layout.BlockOffset(0), old_slab + old_layout.BlockOffset(0),
                static_cast<size_t>(blocks * layout.block_bytes()));
  }
}

template <Kind kKind>
void DecodeRows(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, float* rows) {
  const int64_t head_size = layout.head_size;
  PackedRow row;
  for (int64_t slot = first; slot < last; ++slot, rows += head_size) {
    ReadRow<kKind>(kPlain, layout, slab, slot, &row);
    kPlain.decode_row(row, head_size, rows);
  }
}

}  // namespace

void ReadKeyRow(const PackedLayout& layout, const uint8_t* slab, int64_t slot, PackedRow* row) {
  ReadRow<Kind::kKey>(kPlain, layout, slab, slot, row);
}
void ReadValueRow(const PackedCoding& coding, const PackedLayout& layout, const uint8_t* slab, int64_t slot,
                  PackedRow* row) {
  ReadRow<Kind::kValue>(coding, layout, slab, slot, row);
}
void WriteKeyRow(const PackedLayout& layout, uint8_t* slab, int64_t slot, const PackedRow& row, uint16_t tag) {
  WriteRow<Kind::kKey>(kPlain, layout, slab, slot, row);
  WriteTag(layout, slab, slot, tag);
}
void WriteValueRow(const PackedCoding& coding, const PackedLayout& layout, uint8_t* slab, int64_t slot,
                   const PackedRow& row) {
  WriteRow<Kind::kValue>(coding, layout, slab, slot, row);
  if (slot >= PackedLayout::kHeaderSlots) WriteTag(layout, slab, slot, 0);
}
void ClearKeyRow(const PackedLayout& layout, uint8_t* slab, int64_t slot) { ClearRow<Kind::kKey>(layout, slab, slot); }
void ClearValueRow(const PackedLayout& layout, uint8_t* slab, int64_t slot) {
  ClearRow<Kind::kValue>(layout, slab, slot);
}
void GatherKeyTile(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, uint8_t* tile) {
  GatherTile<Kind::kKey>(layout, slab, first, last, tile);
}
void GatherValueTile(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, uint8_t* tile) {
  GatherTile<Kind::kValue>(layout, slab, first, last, tile);
}
void CopyKeySlab(const PackedLayout& old_layout, const uint8_t* old_slab, int64_t rows, int64_t blocks,
                 const PackedLayout& layout, uint8_t* slab) {
  CopySlab<Kind::kKey>(old_layout, old_slab, rows, blocks, layout, slab);
}
void CopyValueSlab(const PackedLayout& old_layout, const uint8_t* old_slab, int64_t rows, int64_t blocks,
                   const PackedLayout& layout, uint8_t* slab) {
  CopySlab<Kind::kValue>(old_layout, old_slab, rows, blocks, layout, slab);
}
void DecodeKeyRows(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, float* rows) {
  DecodeRows<Kind::kKey>(layout, slab, first, last, rows);
}
void DecodeValueRows(const PackedLayout& layout, const uint8_t* slab, int64_t first, int64_t last, float* rows) {
  DecodeRows<Kind::kValue>(layout, slab, first, last, rows);
}

}  // namespace deltallm
