// Decode over a packed cache: one query per head, docs/spec.md section 3 with the rows of docs/cache-format.md.
#pragma once

#include <atomic>

#include "cache/packed_layout.h"
#include "core/attend.h"

namespace deltallm {

struct PackedAttendCall {
  /// All but `rows`, `skipped` and `past`.
  AttendCall attend;
  PackedLayout layout;
  PackedSlabsOf<const uint8_t> key;
  PackedSlabsOf<const uint8_t> value;
  bool runs_merge = false;
  bool row_granularity = false;
  /// [Hkv], counts values left out by v_skip but for those of held tokens; null: not counted.
  std::atomic<int64_t>* left_out = nullptr;
};

/// Fills the output rows of token s for one (batch row, KV head), whose slabs end with that token.
/// Must not be called while a Scratch of this thread lives. Throws std::bad_alloc.
void AttendPackedToken(const PackedAttendCall& call, int64_t b, int64_t kv_head, int64_t s, const PackedState& state);

/// In how many ranges AttendPackedSplit would take each head's keys; with 1, AttendPackedToken does as well.
int64_t PackedSplits(const PackedAttendCall& call, const Parallel& parallel);

/// S = 1: the same for all heads, whose keys are split over the threads. `states` [B·Hkv].
void AttendPackedSplit(const PackedAttendCall& call, const PackedState* states, int64_t splits,
                       const Parallel& parallel);

/// Whether the call is too small to wake other threads for.
bool IsSmallDecode(const PackedAttendCall& call);

}  // namespace deltallm
