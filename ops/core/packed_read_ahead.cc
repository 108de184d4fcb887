#include "core/packed_read_ahead.h"

#include <algorithm>

namespace deltallm {

bool PanelWalk::Next(PackedQuery::Stretch* panel) {
  while (stretch_ < query_.stretch_count_) {
    const PackedQuery::Stretch& stretch = query_.stretches_[static_cast<size_t>(stretch_)];
    const int64_t size = stretch.end - stretch.begin;
    tile_ = std::max(tile_, stretch.begin + std::clamp<int64_t>(first_ - passed_, 0, size));
    const int64_t end = stretch.begin + std::clamp<int64_t>(last_ - passed_, 0, size);
    if (tile_ < end) {
      *panel = {stretch.sealed, tile_, std::min(end, tile_ + most_)};
      tile_ = panel->end;
      return true;
    }
    passed_ += size;
    tile_ = 0;
    ++stretch_;
  }
  return false;
}

ReadAhead::ReadAhead(const PackedQuery& query, int64_t first, int64_t last, const uint8_t* slab,
                     const uint8_t* next_slab, bool cold)
    : query_(query), walk_(query, first, last, query.tiles()), slab_(slab) {
  PackedQuery::Stretch beginning{};
  // Heads mostly have the same rows in the same places; where not, a few bytes are asked for in vain.
  if (next_slab != nullptr && PanelWalk(query, 0, query.tiles(), query.tiles()).Next(&beginning)) {
    next_slab_ = Piece(next_slab, beginning);
    next_slab_.bytes = std::min(next_slab_.bytes, kDistance);
  }
  if (!cold) {
    // The head before asked for the first bytes.
    Advance();
    lead_ = std::min(piece_.bytes, kDistance);
    piece_ = {piece_.data + lead_, piece_.bytes - lead_};
  }
}

Ahead ReadAhead::Take(int64_t bytes) {
  lead_ -= bytes;
  if (piece_.bytes == 0 && !Advance()) return {};
  const Ahead taken{piece_.data, std::clamp<int64_t>(kDistance - lead_, 0, piece_.bytes)};
  piece_ = {piece_.data + taken.bytes, piece_.bytes - taken.bytes};
  lead_ += taken.bytes;
  return taken;
}

bool ReadAhead::Advance() {
  PackedQuery::Stretch panel{};
  if (walk_.Next(&panel)) {
    piece_ = Piece(slab_, panel);
  } else {
    piece_ = next_slab_;
    next_slab_ = {};
  }
  return piece_.bytes > 0;
}

Ahead ReadAhead::Piece(const uint8_t* slab, const PackedQuery::Stretch& panel) const {
  const PackedLayout& layout = query_.layout_;
  if (panel.sealed) {
    const int64_t blocks = (panel.end - panel.begin) / PackedQuery::kTilesPerBlock;
    return {query_.Block(slab, panel.begin / PackedQuery::kTilesPerBlock), blocks * layout.block_bytes()};
  }
  const int64_t whole = std::min(panel.end, layout.whole_tiles());
  return {slab + panel.begin * layout.tile_bytes(), std::max<int64_t>(whole - panel.begin, 0) * layout.tile_bytes()};
}

}  // namespace deltallm
