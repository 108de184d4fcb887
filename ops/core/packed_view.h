// Which slots and blocks of a packed cache hold the tokens that a query sees.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cache/packed_layout.h"
#include "core/visibility.h"

namespace deltallm {

/// Slots [begin, end) of the row area. Slot begin + i holds token `token` + i, unless runs merge and it is coded.
struct SlotRun {
  int64_t begin;
  int64_t end;
  int64_t token;
  bool coded;
};

/// Tokens are counted from the first real one.
struct PackedView {
  /// Rows of the sealed blocks, all blocks in one line; row i holds token sinks + i, unless runs merge.
  KeyRange sealed{0, 0};
  /// In the order of their slots.
  std::array<SlotRun, 4> runs;
  int64_t count = 0;

  const SlotRun* begin() const { return runs.data(); }
  const SlotRun* end() const { return runs.data() + count; }

  /// Of the tokens [first_seen, tokens), all that a query at the end of the cache sees.
  static PackedView Of(const PackedLayout& layout, const PackedState& state, int64_t tokens, int64_t first_seen) {
    PackedView view;
    const int64_t sealed_rows = layout.SealedBlocks(state.coded_rows) * kBlockRows;
    view.Add({first_seen, std::min(tokens, layout.sinks), first_seen, false}, 0);
    const int64_t window_first = std::max(first_seen, layout.sinks + state.coded_tokens);
    if (window_first < tokens) {
      const int64_t ring = (window_first - layout.sinks) % layout.window;
      const int64_t before_wrap = std::min(layout.window - ring, tokens - window_first);
      // What has wrapped around lies first.
      view.Add({0, tokens - window_first - before_wrap, window_first + before_wrap, false}, layout.sinks);
      view.Add({ring, ring + before_wrap, window_first, false}, layout.sinks);
    }
    const int64_t first_row = std::max<int64_t>(first_seen - layout.sinks, 0);
    const int64_t first_waiting = std::max(first_row, sealed_rows);
    view.Add({first_waiting - sealed_rows, state.coded_rows - sealed_rows, layout.sinks + first_waiting, true},
             layout.first_coded());
    view.sealed = {std::min(first_row, sealed_rows), sealed_rows};
    return view;
  }

 private:
  void Add(SlotRun run, int64_t offset) {
    if (run.end <= run.begin) return;
    runs[static_cast<size_t>(count++)] = {run.begin + offset, run.end + offset, run.token, run.coded};
  }
};

}  // namespace deltallm
