// Prefill and chunks: flash attention of blocks of queries over blocks of keys. A task takes a block of queries with
// all query heads of one KV head, so that keys and values are packed once for all of them.
#include <algorithm>

#include "core/attend.h"
#include "core/key_block.h"
#include "core/query_block.h"
#include "core/scratch.h"

namespace deltallm {
namespace {

// Sums of values that a task keeps. They and the queries pass through the second-level cache once per block of keys, in
// order, so they need not fit into it; more of them means that keys and values are packed less often.
constexpr int64_t kSumsPerTask = 98304;
constexpr int64_t kMostRowsPerTask = 1536;
// Fewer rows would not pay for packing the keys.
constexpr int64_t kFewestRowsPerTask = 96;
// Waking another thread costs some microseconds; smaller calls stay on the calling one.
constexpr int64_t kMacsWorthThreads = 1 << 17;

/// The arithmetic asked for, or float32 where this processor does not have it.
const PrefillArithmetic& SelectArithmetic(const PrefillKernels& kernels, PrefillCompute compute) {
  const PrefillArithmetic* wanted = compute == PrefillCompute::kBfloat16 ? kernels.bfloat16
                                    : compute == PrefillCompute::kInt8   ? kernels.int8
                                                                         : kernels.float32;
  return wanted == nullptr ? *kernels.float32 : *wanted;
}

/// How many equal blocks the queries of a batch row and KV head are split into.
int64_t Blocks(const Geometry& geometry, int64_t threads) {
  const int64_t rows = geometry.new_tokens * geometry.group();
  const int64_t most = std::clamp(kSumsPerTask / geometry.head_size, kFewestRowsPerTask, kMostRowsPerTask);
  const int64_t heads = geometry.batch * geometry.kv_heads;
  // With few heads, smaller blocks give every thread something to do.
  const int64_t wanted = std::max((rows + most - 1) / most, (2 * threads + heads - 1) / heads);
  const int64_t smallest = std::max((rows + most - 1) / most, rows / kFewestRowsPerTask);
  return std::min({wanted, smallest, geometry.new_tokens});
}

/// Most keys that any query of batch row b sees.
int64_t MostKeys(const AttendCall& call) {
  int64_t most = 0;
  for (int64_t b = 0; b < call.geometry.batch; ++b) most = std::max(most, call.spans[b].length - call.spans[b].start);
  return most;
}

void AttendTask(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t head, int64_t first,
                int64_t count) {
  const int64_t b = head / call.geometry.kv_heads;
  Scratch scratch(QueryBlock::ScratchFloats(call, arithmetic, count) + KeyPacker::ScratchFloats(call, arithmetic));
  QueryBlock queries(call, arithmetic, b, head % call.geometry.kv_heads, first, count, &scratch);
  const KeyPacker packer(call, arithmetic, b, head, &scratch);
  KeyRange rows = queries.visible();
  if (call.past != nullptr) {
    for (int64_t i = 0; i < call.past->Count(head);) {
      const KeyBlock block = packer.PackPast(&i);
      if (queries.Sees(block)) queries.Attend(block);
    }
    rows.begin = std::max(rows.begin, call.spans[b].past);
  }
  const int64_t columns = KeyPacker::BlockColumns(call.geometry.head_size);
  for (; rows.begin < rows.end; rows.begin += columns) {
    const int64_t end = std::min(rows.end, rows.begin + columns);
    queries.Attend(packer.PackRows({rows.begin, end}, queries.held_first(), queries.held_last()));
  }
  queries.Write();
}

}  // namespace

void AttendBlocks(const AttendCall& call, const Parallel& parallel) {
  const Geometry& geometry = call.geometry;
  const int64_t heads = geometry.batch * geometry.kv_heads;
  if (geometry.new_tokens == 0 || heads == 0) return;
  const PrefillArithmetic& arithmetic = SelectArithmetic(*call.kernels->prefill, call.rules.prefill_compute);
  const int64_t blocks = Blocks(geometry, parallel.threads);
  const int64_t queries = (geometry.new_tokens + blocks - 1) / blocks;
  const int64_t tasks = (geometry.new_tokens + queries - 1) / queries;
  const int64_t macs_per_key = heads * geometry.group() * geometry.new_tokens * geometry.head_size;
  const bool small = macs_per_key < kMacsWorthThreads && macs_per_key * MostKeys(call) < kMacsWorthThreads;
  ParallelFor(small ? Parallel{} : parallel, heads * tasks, [&](int64_t task) {
    // Late queries see the most keys: they go first, so that the short tasks fill the gaps at the end.
    const int64_t first = (tasks - 1 - task / heads) * queries;
    AttendTask(call, arithmetic, task % heads, first, std::min(queries, geometry.new_tokens - first));
  });
}

}  // namespace deltallm
