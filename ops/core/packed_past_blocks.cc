#include "core/packed_past_blocks.h"

#include <algorithm>

#include "cache/packed_blocks.h"

namespace deltallm {
namespace {

int64_t SealedBlocksSeen(const PackedView& view) {
  if (view.sealed.size() == 0) return 0;
  return (view.sealed.end + kBlockRows - 1) / kBlockRows - view.sealed.begin / kBlockRows;
}

int64_t SlotsSeen(const PackedView& view) {
  int64_t slots = 0;
  for (const SlotRun& run : view) slots += run.end - run.begin;
  return slots;
}

}  // namespace

PackedView PackedPastBlocks::View(int64_t head) const {
  const int64_t b = head / plan_.geometry.kv_heads;
  const RowSpan& span = plan_.lengths.rows[static_cast<size_t>(b)];
  const int64_t tokens = span.PastTokens();
  if (tokens == 0) return {};
  // The first query of the call sees the most of the past.
  const int64_t first_seen = std::max<int64_t>(VisibleKeys(rules_, span, span.past).begin - span.start, 0);
  return PackedView::Of(plan_.past_layout, plan_.past_states[static_cast<size_t>(head)], tokens, first_seen);
}

int64_t PackedPastBlocks::Count(int64_t head) const {
  const PackedView view = View(head);
  return SealedBlocksSeen(view) + (SlotsSeen(view) + PastBlock::kMaxRows - 1) / PastBlock::kMaxRows;
}

void PackedPastBlocks::Load(int64_t head, int64_t block, PastBlock* into) const {
  const PackedView view = View(head);
  const int64_t sealed = SealedBlocksSeen(view);
  into->rows = 0;
  if (block < sealed) {
    LoadSealed(head, view, view.sealed.begin / kBlockRows + block, into);
  } else {
    LoadSlots(head, view, (block - sealed) * PastBlock::kMaxRows, into);
  }
}

void PackedPastBlocks::LoadSealed(int64_t head, const PackedView& view, int64_t block, PastBlock* into) const {
  static_assert(kBlockRows == PastBlock::kMaxRows, "a sealed block fills one block of the past");
  const PackedLayout& layout = plan_.past_layout;
  const uint8_t* key = key_.Slab(head) + layout.BlockOffset(block);
  const int64_t first = std::max<int64_t>(view.sealed.begin - block * kBlockRows, 0);
  DecodeKeyBlock(layout, key, first, kBlockRows, into->keys);
  DecodeValueBlock(layout, value_.Slab(head) + layout.BlockOffset(block), first, kBlockRows, into->values);
  const int64_t start = plan_.lengths.rows[static_cast<size_t>(head / plan_.geometry.kv_heads)].start;
  for (int64_t row = first; row < kBlockRows; ++row) {
    const bool run = plan_.runs_merge;
    into->tokens[into->rows] = run ? static_cast<float>(TokensOf(ReadBlockTag(layout, key, row))) : 1.0f;
    into->cache_row[into->rows++] = run ? -1 : start + layout.sinks + block * kBlockRows + row;
  }
}

void PackedPastBlocks::LoadSlots(int64_t head, const PackedView& view, int64_t first, PastBlock* into) const {
  const PackedLayout& layout = plan_.past_layout;
  const uint8_t* key = key_.Slab(head);
  const int64_t start = plan_.lengths.rows[static_cast<size_t>(head / plan_.geometry.kv_heads)].start;
  int64_t passed = 0;
  for (const SlotRun& run : view) {
    const int64_t size = run.end - run.begin;
    const int64_t begin = run.begin + std::clamp<int64_t>(first - passed, 0, size);
    const int64_t end = run.begin + std::clamp<int64_t>(first + PastBlock::kMaxRows - passed, 0, size);
    passed += size;
    DecodeKeyRows(layout, key, begin, end, into->keys + into->rows * layout.head_size);
    DecodeValueRows(layout, value_.Slab(head), begin, end, into->values + into->rows * layout.head_size);
    const bool merged = plan_.runs_merge && run.coded;
    for (int64_t slot = begin; slot < end; ++slot) {
      into->tokens[into->rows] = merged ? static_cast<float>(TokensOf(ReadTag(layout, key, slot))) : 1.0f;
      into->cache_row[into->rows++] = merged ? -1 : start + run.token + slot - run.begin;
    }
  }
}

}  // namespace deltallm
