// Prefill and chunks: a block of queries, with all query heads of a KV head stacked as rows, against blocks of keys.
// Both products are matrix products on packed float32 keys; the softmax is kept online, block by block.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/attend.h"
#include "core/scratch.h"

namespace deltallm {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kKeysPerBlock = 128;
// Rows of a task's matrix products: enough to pay for packing the keys, few enough to stay in the second-level cache.
constexpr int64_t kRowsPerTask = 192;
// Queries that share their column limit where the causal diagonal crosses a block.
constexpr int64_t kQueriesPerStrip = 12;

int64_t QueriesPerTask(const Geometry& geometry) {
  const int64_t queries = std::max<int64_t>(kRowsPerTask / geometry.group(), 1);
  return std::min(queries, geometry.new_tokens);
}

/// One task: queries [first, first + count) of batch row b, all query heads of one KV head. Row g·count + i is query
/// first + i of head g in the group.
class QueryBlock {
 public:
  QueryBlock(const AttendCall& call, int64_t b, int64_t kv_head, int64_t first, int64_t count)
      : call_(call),
        kernels_(*call.kernels),
        b_(b),
        kv_head_(kv_head),
        head_(b * call.geometry.kv_heads + kv_head),
        first_(first),
        count_(count),
        group_(call.geometry.group()),
        rows_(group_ * count),
        head_size_(call.geometry.head_size),
        scratch_(ScratchSize(rows_, head_size_)) {
    query_ = scratch_.Take(rows_ * head_size_);
    sum_ = scratch_.Take(rows_ * head_size_);
    maximum_ = scratch_.Take(rows_);
    denominator_ = scratch_.Take(rows_);
    scores_ = scratch_.Take(rows_ * kKeysPerBlock);
    held_scores_ = scratch_.Take(rows_ * kKeysPerBlock);
    columns_ = scratch_.Take(head_size_ * kKeysPerBlock);
    values_ = scratch_.Take(head_size_ * kKeysPerBlock);
    buffer_ = scratch_.Take(2 * head_size_);
  }

  void Run() {
    LoadQueries();
    const KeyRange keys{Visible(0).begin, Visible(count_ - 1).end};
    for (int64_t first = keys.begin; first < keys.end; first += kKeysPerBlock) {
      Block({first, std::min(keys.end, first + kKeysPerBlock)});
    }
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t h = kv_head_ * group_ + row / count_;
      float* sum = sum_ + row * head_size_;
      kernels_.scale(sum, head_size_, call_.Finish(h, maximum_[row], denominator_[row]));
      call_.output.Write(kernels_, b_, first_ + row % count_, h, sum);
    }
  }

 private:
  static int64_t ScratchSize(int64_t rows, int64_t head_size) {
    return 2 * Scratch::RoundUp(rows * head_size) + 2 * Scratch::RoundUp(rows) +
           2 * Scratch::RoundUp(rows * kKeysPerBlock) + 2 * Scratch::RoundUp(head_size * kKeysPerBlock) +
           Scratch::RoundUp(2 * head_size);
  }

  const RowSpan& span() const { return call_.spans[b_]; }
  /// Of query first + i.
  KeyRange Visible(int64_t i) const { return VisibleKeys(call_.rules, span(), span().past + first_ + i); }
  KeyRange Held(int64_t i) const {
    return HeldKeys(call_.rules, span(), call_.geometry.new_tokens, span().past + first_ + i);
  }

  void LoadQueries() {
    for (int64_t row = 0; row < rows_; ++row) {
      call_.query.Read(kernels_, b_, first_ + row % count_, kv_head_ * group_ + row / count_, buffer_,
                       query_ + row * head_size_);
    }
    kernels_.scale(query_, rows_ * head_size_, call_.scale());
    std::fill_n(sum_, rows_ * head_size_, 0.0f);
    std::fill_n(maximum_, rows_, kNegativeInfinity);
    std::fill_n(denominator_, rows_, 0.0f);
  }

  void Block(KeyRange keys) {
    Scores(keys);
    for (int64_t row = 0; row < rows_; ++row) Softmax(keys, row);
    AddValues(keys);
  }

  /// Calls body(first row, rows, columns): all rows with all columns, or strips of queries that end at their diagonal.
  template <typename Body>
  void ForEachStrip(KeyRange keys, const Body& body) const {
    if (Visible(0).end >= keys.end) {
      body(int64_t{0}, rows_, keys.size());
      return;
    }
    for (int64_t i = 0; i < count_; i += kQueriesPerStrip) {
      const int64_t strip = std::min(kQueriesPerStrip, count_ - i);
      const int64_t columns = std::min(keys.end, Visible(i + strip - 1).end) - keys.begin;
      if (columns <= 0) continue;
      for (int64_t g = 0; g < group_; ++g) body(g * count_ + i, strip, columns);
    }
  }

  /// Keys read alike by every query of the task are packed from their one source. Those that some queries read exactly
  /// and others as k̂, at the edge of the window, are computed both ways.
  void Scores(KeyRange keys) {
    const KeyRange first = Held(0);
    const KeyRange last = Held(count_ - 1);
    const bool has_held = call_.rows.held.data != nullptr;
    const KeyRange held = Intersect(keys, first);
    Pack(keys, held, 0);
    Multiply(keys, scores_);
    if (!has_held) return;
    const KeyRange edge = Intersect(keys, {std::max(first.begin, first.end), last.end});
    if (edge.size() == 0) return;
    Pack(edge, edge, edge.begin - keys.begin);
    Multiply(keys, held_scores_);
    for (int64_t row = 0; row < rows_; ++row) {
      const KeyRange read_held = Intersect(edge, Held(row % count_));
      const int64_t offset = row * kKeysPerBlock - keys.begin;
      for (int64_t j = read_held.begin; j < read_held.end; ++j) scores_[offset + j] = held_scores_[offset + j];
    }
  }

  /// columns_[c][column + j] = channel c of key row keys.begin + j, from the held rows within `held`.
  void Pack(KeyRange keys, KeyRange held, int64_t column) {
    int64_t row = keys.begin;
    while (row < keys.end) {
      int64_t stop = keys.end;
      const char* source = call_.rows.key.Row(head_, row);
      if (call_.rows.held.data != nullptr && held.size() > 0) {
        const int64_t held_begin = std::max(held.begin, call_.rows.held_begin[b_]);
        if (row < held_begin) {
          stop = std::min(stop, held_begin);
        } else if (row < held.end) {
          source = call_.rows.HeldRow(b_, head_, row);
          stop = std::min(stop, held.end);
        }
      }
      TransposeRows(kernels_, call_.rows.key.type, source, stop - row, head_size_,
                    columns_ + column + (row - keys.begin), kKeysPerBlock);
      row = stop;
    }
  }

  void Multiply(KeyRange keys, float* scores) const {
    ForEachStrip(keys, [&](int64_t row, int64_t rows, int64_t columns) {
      kernels_.matmul(query_ + row * head_size_, head_size_, columns_, kKeysPerBlock, scores + row * kKeysPerBlock,
                      kKeysPerBlock, rows, columns, head_size_, false);
    });
  }

  /// Turns a row of scores into weights. Keys the query does not see get weight 0.
  void Softmax(KeyRange keys, int64_t row) {
    const int64_t i = row % count_;
    const int64_t h = kv_head_ * group_ + row / count_;
    const KeyRange visible = Intersect(keys, Visible(i));
    float* scores = scores_ + row * kKeysPerBlock;
    if (visible.size() == 0) {
      std::fill_n(scores, keys.size(), 0.0f);
      return;
    }
    const int64_t begin = visible.begin - keys.begin;
    const int64_t count = visible.size();
    std::fill_n(scores, begin, 0.0f);
    std::fill_n(scores + begin + count, keys.size() - begin - count, 0.0f);
    scores += begin;
    if (call_.rules.softcap > 0.0f) kernels_.softcap(scores, count, call_.rules.softcap);
    call_.AddBias(b_, h, first_ + i, visible.begin, count, scores);
    const float top = std::max(maximum_[row], kernels_.maximum(scores, count));
    if (top > maximum_[row]) {
      if (maximum_[row] > kNegativeInfinity) {
        const float keep = std::exp(maximum_[row] - top);
        denominator_[row] *= keep;
        kernels_.scale(sum_ + row * head_size_, head_size_, keep);
      }
      maximum_[row] = top;
    }
    denominator_[row] += kernels_.exp_and_sum(scores, count, top == kNegativeInfinity ? 0.0f : top);
    if (call_.rules.v_skip > 0.0f && top > kNegativeInfinity) {
      call_.SkipValues(b_, kv_head_, Held(i), visible.begin, count, scores);
    }
  }

  void AddValues(KeyRange keys) {
    const ConstFloatCache& value = call_.rows.value;
    const char* stored = value.Row(head_, keys.begin);
    const float* values = reinterpret_cast<const float*>(stored);
    if (value.type == ElementType::kFloat16) {
      kernels_.half_to_float(reinterpret_cast<const uint16_t*>(stored), keys.size() * head_size_, values_);
      values = values_;
    }
    ForEachStrip(keys, [&](int64_t row, int64_t rows, int64_t columns) {
      kernels_.matmul(scores_ + row * kKeysPerBlock, kKeysPerBlock, values, head_size_, sum_ + row * head_size_,
                      head_size_, rows, head_size_, columns, true);
    });
  }

  const AttendCall& call_;
  const Kernels& kernels_;
  int64_t b_;
  int64_t kv_head_;
  int64_t head_;
  int64_t first_;
  int64_t count_;
  int64_t group_;
  int64_t rows_;
  int64_t head_size_;
  Scratch scratch_;
  float* query_;        // [rows, D]
  float* sum_;          // [rows, D]
  float* maximum_;      // [rows]
  float* denominator_;  // [rows]
  float* scores_;       // [rows, keys]
  float* held_scores_;  // [rows, keys]
  float* columns_;      // [D, keys]
  float* values_;       // [keys, D]
  float* buffer_;       // [2·D]
};

}  // namespace

void AttendBlocks(const AttendCall& call, const Parallel& parallel) {
  const Geometry& geometry = call.geometry;
  if (geometry.new_tokens == 0) return;
  const int64_t queries = QueriesPerTask(geometry);
  const int64_t blocks = (geometry.new_tokens + queries - 1) / queries;
  const int64_t heads = geometry.batch * geometry.kv_heads;
  ParallelFor(parallel, heads * blocks, [&](int64_t task) {
    const int64_t head = task % heads;
    // Late queries see the most keys: they go first, so that the short tasks fill the gaps at the end.
    const int64_t first = (blocks - 1 - task / heads) * queries;
    QueryBlock block(call, head / geometry.kv_heads, head % geometry.kv_heads, first,
                     std::min(queries, geometry.new_tokens - first));
    block.Run();
  });
}

}  // namespace deltallm
