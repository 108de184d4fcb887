#include "core/packed_statistics.h"

#include "cache/packed_blocks.h"

namespace deltallm {
namespace {

/// Held tokens (row) or channels (element) of a coded row.
int64_t HeldOf(uint16_t tag, bool row_granularity) {
  if (!row_granularity) return tag;
  return std::max(TokensOf(tag) - 1, 0) + (RepeatsKey(tag) ? 1 : 0);
}

/// Of the coded rows that hold a token from `first_seen` on.
int64_t HeldOfCodedRows(const PackedCounting& counting, const PackedState& state, int64_t first_seen,
                        const uint8_t* slab) {
  const PackedLayout& layout = counting.layout;
  const int64_t sealed = layout.SealedBlocks(state.coded_rows) * kBlockRows;
  int64_t held = 0;
  for (int64_t row = std::max<int64_t>(first_seen - layout.sinks, 0); row < state.coded_rows; ++row) {
    const uint16_t tag = row < sealed
                             ? ReadBlockTag(layout, slab + layout.BlockOffset(row / kBlockRows), row % kBlockRows)
                             : ReadTag(layout, slab, layout.first_coded() + row - sealed);
    held += HeldOf(tag, counting.row_granularity);
  }
  return held;
}

/// Bytes of keys and values together.
int64_t BytesOf(const PackedLayout& layout, const PackedView& view) {
  int64_t bytes = 0;
  for (const SlotRun& run : view) bytes += (run.end - run.begin) * layout.row_bytes();
  if (view.sealed.size() > 0) {
    const int64_t blocks = (view.sealed.end + kBlockRows - 1) / kBlockRows - view.sealed.begin / kBlockRows;
    bytes += blocks * layout.block_bytes();
  }
  return 2 * bytes;
}

}  // namespace

void PackedCounts::AddQuery(const PackedCounting& counting, int64_t s, const PackedState& state,
                            const uint8_t* key_slab) {
  const KeyRange visible = VisibleKeys(counting.rules, counting.span, counting.span.past + s);
  if (visible.size() == 0) return;
  const int64_t group = counting.geometry.group();
  const int64_t per_key = group * counting.geometry.head_size;
  const int64_t held = HeldOfCodedRows(counting, state, visible.begin - counting.span.start, key_slab);
  columns_[2] += per_key * visible.size();
  columns_[3] += (counting.row_granularity ? per_key : group) * held;
  columns_[4] += per_key * visible.size();
  columns_[5] += counting.row_granularity ? per_key * held : 0;
}

void PackedCounts::AddCall(const PackedCounting& counting, const CodingCounts& coded, const PackedState& state) {
  const PackedLayout& layout = counting.layout;
  const int64_t tokens = counting.span.Tokens();
  columns_[0] += coded.tokens * (counting.row_granularity ? 1 : layout.head_size);
  columns_[1] += coded.held;
  if (tokens > 0) columns_[6] += BytesOf(layout, PackedView::Of(layout, state, tokens, 0));
  // The first query that sees anything sees furthest back.
  for (int64_t s = 0; s < counting.geometry.new_tokens; ++s) {
    const KeyRange visible = VisibleKeys(counting.rules, counting.span, counting.span.past + s);
    if (visible.size() == 0) continue;
    columns_[7] += BytesOf(layout, PackedView::Of(layout, state, tokens, visible.begin - counting.span.start));
    return;
  }
}

}  // namespace deltallm
