// Decode: one query per batch row and head. A task takes one KV head, its whole group of query heads, and a range of
// keys, so that every key and value row is loaded once per group; ranges of one head merge by maximum, denominator and
// sum.
#include <algorithm>

#include "core/attend.h"
#include "core/partial.h"
#include "core/scratch.h"

namespace deltallm {
namespace {

// Every turn from keys to values and back costs about a microsecond, until the hardware's prefetching has found the new
// stream. A block's weights should stay in the second-level cache.
constexpr int64_t kKeysPerBlock = 2048;
// Splitting costs a merge and a task; below this many keys it does not pay.
constexpr int64_t kKeysPerSplit = 512;
// Waking another thread costs some microseconds; smaller calls stay on the calling one.
constexpr int64_t kMacsWorthThreads = 1 << 17;

class OneQuery {
 public:
  OneQuery(const AttendCall& call, int64_t b, int64_t kv_head)
      : call_(call),
        kernels_(*call.kernels),
        b_(b),
        kv_head_(kv_head),
        head_(b * call.geometry.kv_heads + kv_head),
        group_(call.geometry.group()),
        head_size_(call.geometry.head_size),
        visible_(VisibleKeys(call.rules, call.spans[b], call.spans[b].past)),
        held_(HeldKeys(call.rules, call.spans[b], 1, call.spans[b].past)) {}

  KeyRange visible() const { return visible_; }

  void Run(KeyRange keys, Partial partial) const {
    Scratch scratch(Scratch::RoundUp(group_ * head_size_) + Scratch::RoundUp(group_ * kKeysPerBlock) +
                    Scratch::RoundUp(2 * head_size_));
    float* query = scratch.Take(group_ * head_size_);
    float* weights = scratch.Take(group_ * kKeysPerBlock);
    float* buffer = scratch.Take(2 * head_size_);
    for (int64_t g = 0; g < group_; ++g) {
      call_.query.Read(kernels_, b_, 0, kv_head_ * group_ + g, buffer, query + g * head_size_);
    }
    kernels_.scale(query, group_ * head_size_, call_.ScoreFactor());
    partial.Clear(group_, head_size_);
    for (int64_t first = keys.begin; first < keys.end; first += kKeysPerBlock) {
      Block(query, first, std::min(kKeysPerBlock, keys.end - first), weights, partial);
    }
  }

  void Write(Partial partial) const {
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t h = kv_head_ * group_ + g;
      float* row = partial.sum + g * head_size_;
      kernels_.scale(row, head_size_, call_.Finish(h, partial.maximum[g], partial.denominator[g]));
      call_.output.Write(kernels_, b_, 0, h, row);
    }
  }

 private:
  void Block(const float* query, int64_t first, int64_t count, float* weights, Partial partial) const {
    Scores(query, first, count, weights);
    for (int64_t g = 0; g < group_; ++g) {
      float* row = weights + g * kKeysPerBlock;
      call_.Softcap(row, count);
      call_.AddBias(b_, kv_head_ * group_ + g, 0, first, count, row);
      const float offset = partial.Raise(kernels_, g, head_size_, row, count);
      partial.denominator[g] += kernels_.exp2_and_sum(row, count, offset);
      if (call_.rules.v_skip > 0.0f && partial.maximum[g] > Partial::kNegativeInfinity) {
        call_.SkipValues(b_, kv_head_, held_, first, count, row);
      }
    }
    AddValues(weights, first, count, partial.sum);
  }

  /// Up to three stretches with their own source: exact, held, exact.
  void Scores(const float* query, int64_t first, int64_t count, float* scores) const {
    const int64_t end = first + count;
    int64_t row = first;
    while (row < end) {
      int64_t stop = end;
      const char* source = call_.rows.key.Row(head_, row);
      if (call_.rows.held.data != nullptr) {
        const int64_t held_begin = std::max(held_.begin, call_.rows.held_begin[b_]);
        if (row < held_begin) {
          stop = std::min(end, held_begin);
        } else if (row < held_.end) {
          source = call_.rows.HeldRow(b_, head_, row);
          stop = std::min(end, held_.end);
        }
      }
      ScoreRows(kernels_, call_.rows.key.type, query, group_, source, stop - row, head_size_, scores + (row - first),
                kKeysPerBlock);
      row = stop;
    }
  }

  void AddValues(const float* weights, int64_t first, int64_t count, float* sum) const {
    const ConstFloatCache& value = call_.rows.value;
    if (call_.rules.v_skip == 0.0f) {
      AddRows(kernels_, value.type, weights, kKeysPerBlock, group_, value.Row(head_, first), count, head_size_, sum);
      return;
    }
    // Rows that no head of the group needs are not loaded.
    int64_t i = 0;
    while (i < count) {
      if (!Needed(weights + i)) {
        ++i;
        continue;
      }
      const int64_t begin = i;
      while (i < count && Needed(weights + i)) ++i;
      AddRows(kernels_, value.type, weights + begin, kKeysPerBlock, group_, value.Row(head_, first + begin), i - begin,
              head_size_, sum);
    }
  }

  bool Needed(const float* weights) const {
    for (int64_t g = 0; g < group_; ++g) {
      if (weights[g * kKeysPerBlock] != 0.0f) return true;
    }
    return false;
  }

  const AttendCall& call_;
  const Kernels& kernels_;
  int64_t b_;
  int64_t kv_head_;
  int64_t head_;
  int64_t group_;
  int64_t head_size_;
  KeyRange visible_;
  KeyRange held_;
};

int64_t MostKeys(const AttendCall& call) {
  int64_t most = 0;
  for (int64_t b = 0; b < call.geometry.batch; ++b) {
    most = std::max(most, VisibleKeys(call.rules, call.spans[b], call.spans[b].past).size());
  }
  return most;
}

}  // namespace

void AttendOne(const AttendCall& call, const Parallel& parallel) {
  const Geometry& geometry = call.geometry;
  const int64_t heads = geometry.batch * geometry.kv_heads;
  const int64_t group = geometry.group();
  const int64_t most_keys = MostKeys(call);
  const int64_t splits = SplitsPerHead(parallel.threads, heads, most_keys, kKeysPerSplit);
  const int64_t size = Partial::Size(group, geometry.head_size);
  KeptFloats partials(heads * splits * size);
  const bool small = heads * group * geometry.head_size * most_keys < kMacsWorthThreads;

  ParallelFor(small ? Parallel{} : parallel, heads * splits, [&](int64_t task) {
    const int64_t head = task / splits;
    const int64_t split = task % splits;
    const OneQuery query(call, head / geometry.kv_heads, head % geometry.kv_heads);
    const KeyRange visible = query.visible();
    const int64_t per_split = (visible.size() + splits - 1) / splits;
    const int64_t begin = visible.begin + split * per_split;
    const Partial partial(partials.data() + task * size, group);
    query.Run({begin, std::min(visible.end, begin + per_split)}, partial);
    if (splits == 1) query.Write(partial);
  });
  if (splits == 1) return;
  for (int64_t head = 0; head < heads; ++head) {
    const OneQuery query(call, head / geometry.kv_heads, head % geometry.kv_heads);
    const Partial whole(partials.data() + head * splits * size, group);
    for (int64_t split = 1; split < splits; ++split) {
      whole.Merge(Partial(partials.data() + (head * splits + split) * size, group), group, geometry.head_size);
    }
    query.Write(whole);
  }
}

}  // namespace deltallm
