#include "core/packed_attend.h"

#include "core/packed_query.h"
#include "core/partial.h"
#include "core/scratch.h"

namespace deltallm {
namespace {

// Splitting costs a merge and a task, and a packed key a quarter of a float key's time; below this it does not pay.
constexpr int64_t kKeysPerSplit = 1024;
// Waking another thread costs some microseconds; smaller calls stay on the calling one.
constexpr int64_t kMacsWorthThreads = 1 << 18;
// A range of tiles ends where a block may end.
constexpr int64_t kTilesPerBlock = kBlockRows / kTileRows;

int64_t MostKeys(const PackedAttendCall& call) {
  int64_t most = 0;
  for (int64_t b = 0; b < call.attend.geometry.batch; ++b) {
    const RowSpan& span = call.attend.spans[b];
    most = std::max(most, VisibleKeys(call.attend.rules, span, span.past).size());
  }
  return most;
}

}  // namespace

void AttendPackedToken(const PackedAttendCall& call, int64_t b, int64_t kv_head, int64_t s, const PackedState& state) {
  const PackedQuery query(call, b, kv_head, s, state);
  const int64_t group = call.attend.geometry.group();
  const int64_t size = Partial::Size(group, call.attend.geometry.head_size);
  KeptFloats memory(size);
  const Partial partial(memory.data(), group);
  query.Run(0, query.tiles(), partial, call.attend.geometry.new_tokens == 1);
  query.Write(partial);
}

int64_t PackedSplits(const PackedAttendCall& call, const Parallel& parallel) {
  const int64_t heads = call.attend.geometry.batch * call.attend.geometry.kv_heads;
  return heads == 0 ? 1 : SplitsPerHead(parallel.threads, heads, MostKeys(call), kKeysPerSplit);
}

bool IsSmallDecode(const PackedAttendCall& call) {
  const Geometry& geometry = call.attend.geometry;
  return geometry.batch * geometry.query_heads * geometry.head_size * MostKeys(call) < kMacsWorthThreads;
}

void AttendPackedSplit(const PackedAttendCall& call, const PackedState* states, int64_t splits,
                       const Parallel& parallel) {
  const Geometry& geometry = call.attend.geometry;
  const int64_t heads = geometry.batch * geometry.kv_heads;
  const int64_t group = geometry.group();
  const int64_t size = Partial::Size(group, geometry.head_size);
  KeptFloats partials(heads * splits * size);
  const auto partial = [&](int64_t head, int64_t split) {
    return Partial(partials.data() + (head * splits + split) * size, group);
  };
  ParallelFor(parallel, heads * splits, [&](int64_t task) {
    const int64_t head = task / splits;
    const int64_t split = task % splits;
    const PackedQuery query(call, head / geometry.kv_heads, head % geometry.kv_heads, 0, states[head]);
    const int64_t blocks = (query.tiles() + kTilesPerBlock - 1) / kTilesPerBlock;
    const int64_t per_split = (blocks + splits - 1) / splits * kTilesPerBlock;
    query.Run(std::min(query.tiles(), split * per_split), std::min(query.tiles(), (split + 1) * per_split),
              partial(head, split), false);
  });
  for (int64_t head = 0; head < heads; ++head) {
    const PackedQuery query(call, head / geometry.kv_heads, head % geometry.kv_heads, 0, states[head]);
    const Partial whole = partial(head, 0);
    for (int64_t split = 1; split < splits; ++split) whole.Merge(partial(head, split), group, geometry.head_size);
    query.Write(whole);
  }
}

}  // namespace deltallm
