// Where rows and blocks of a packed cache lie: docs/cache-format.md, "Rows", "int8" and "int4". Nothing is read here.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cache/cache_format.h"
#include "kernels/packed_kernels.h"

namespace deltallm {

/// Sizes of the slabs of a layer. A slab holds the keys, or the values, of one (batch row, KV head).
struct PackedLayout {
  /// Slots whose value tags hold the header; all of them lie before the coded rows.
  static constexpr int64_t kHeaderSlots = 6;
  static constexpr int64_t kFewestExactSlots = 8;

  CacheFormat format = CacheFormat::kInt8;
  int64_t head_size = 0;  ///< D, at most kMostPackedHeadSize
  int64_t sinks = 0;
  int64_t window = 0;  ///< W

  /// Rows of past or present; to be set once the other sizes are.
  void SetCapacity(int64_t capacity) {
    capacity_ = capacity;
    rows_ = std::min(full_rows(), slab_bytes() / row_bytes());
  }
  int64_t capacity() const { return capacity_; }

  /// D′, channels of a stored row.
  int64_t channels() const { return (head_size + 3) / 4 * 4; }
  /// Bytes of a row of 8-bit codes with its scale and tag.
  int64_t row_bytes() const { return channels() + 4; }
  int64_t tile_bytes() const { return kTileRows * row_bytes(); }
  int64_t bytes_per_token() const {
    if (format == CacheFormat::kInt8) return row_bytes();
    return std::max(channels() / 2 + 4, (17 * channels() + 31) / 32 + 2);
  }
  int64_t block_bytes() const { return kBlockRows * bytes_per_token(); }
  int64_t slab_bytes() const { return capacity_ * bytes_per_token(); }

  /// Slot of the first coded row that waits in the row area.
  int64_t first_coded() const { return sinks + window; }
  /// Rows of the row area of a slab that is large enough.
  int64_t full_rows() const {
    if (format == CacheFormat::kInt8) return capacity_;
    return (first_coded() + kBlockRows + 2 + kTileRows - 1) / kTileRows * kTileRows;
  }
  /// Rows of this slab's row area; those behind the last whole tile lie one after the other.
  int64_t rows() const { return rows_; }
  int64_t whole_tiles() const { return rows_ / kTileRows; }

  /// Blocks that lie behind the row area once there are so many coded rows.
  int64_t SealedBlocks(int64_t coded_rows) const {
    return format == CacheFormat::kInt8 ? 0 : std::max<int64_t>(coded_rows - 1, 0) / kBlockRows;
  }
  /// Coded rows that are still in the row area then.
  int64_t WaitingRows(int64_t coded_rows) const { return coded_rows - SealedBlocks(coded_rows) * kBlockRows; }
  /// Blocks that this slab has room for.
  int64_t most_blocks() const {
    if (format == CacheFormat::kInt8) return 0;
    return std::max<int64_t>(slab_bytes() - full_rows() * row_bytes(), 0) / block_bytes();
  }
  int64_t BlockOffset(int64_t block) const { return full_rows() * row_bytes() + block * block_bytes(); }

  /// Capacity in which every cache of so many tokens fits.
  int64_t RowsNeeded(int64_t tokens) const {
    if (format == CacheFormat::kInt8) return tokens;
    const int64_t blocks = SealedBlocks(std::max<int64_t>(tokens - first_coded(), 0));
    const int64_t bytes = blocks == 0 ? std::min(tokens, full_rows()) * row_bytes() : BlockOffset(blocks);
    return (bytes + bytes_per_token() - 1) / bytes_per_token();
  }

 private:
  int64_t capacity_ = 0;
  // Kept, because finding a row must not divide.
  int64_t rows_ = 0;
};

/// The slabs of all (batch row, KV head) pairs of a layer, keys or values.
template <typename Byte>
struct PackedSlabsOf {
  Byte* data = nullptr;
  int64_t slab_bytes = 0;
  Byte* Slab(int64_t head) const { return data + head * slab_bytes; }
};

/// How much of a slab is coded; the number of tokens comes with the call.
struct PackedState {
  int64_t coded_tokens = 0;
  int64_t coded_rows = 0;
};

}  // namespace deltallm
