#include "core/query_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace deltallm {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int64_t kStretch = 64;
// The query rows of a KV head lie apart in memory, too far for hardware prefetching.
constexpr int64_t kRowsAhead = 48;

int64_t FloatsFor(int64_t bytes) { return Scratch::RoundUp((bytes + 3) / 4); }

int64_t TilesOf(int64_t rows) { return (rows + PrefillArithmetic::kTileRows - 1) / PrefillArithmetic::kTileRows; }

int64_t SumStride(int64_t head_size) {
  constexpr int64_t kAlignment = PrefillArithmetic::kSumAlignment;
  return (head_size + kAlignment - 1) / kAlignment * kAlignment;
}

static_assert(sizeof(SoftmaxRow) == 3 * sizeof(float), "kept in scratch memory");

}  // namespace

QueryBlock::QueryBlock(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t b, int64_t kv_head,
                       int64_t first, int64_t count, Scratch* scratch)
    : call_(call),
      kernels_(*call.kernels),
      arithmetic_(arithmetic),
      b_(b),
      kv_head_(kv_head),
      first_(first),
      count_(count),
      group_(call.geometry.group()),
      rows_(group_ * count),
      tiles_(TilesOf(rows_)),
      head_size_(call.geometry.head_size),
      tile_bytes_(arithmetic.query_tile_bytes(head_size_)),
      sum_stride_(SumStride(head_size_)),
      score_stride_(KeyPacker::BlockColumns(head_size_)),
      query_(reinterpret_cast<char*>(scratch->Take((tiles_ * tile_bytes_ + 3) / 4))),
      sum_(scratch->Take(tiles_ * kTileRows * sum_stride_)),
      row_(reinterpret_cast<SoftmaxRow*>(scratch->Take(3 * rows_))),
      scores_(scratch->Take(kTileRows * score_stride_)),
      held_scores_(scratch->Take(kTileRows * arithmetic.panel_keys)) {
  for (int64_t row = 0; row < std::min(kRowsAhead, rows_); ++row) PrefetchQuery(row);
  float* rows = scratch->Take(kTileRows * head_size_);
  float* buffer = scratch->Take(2 * head_size_);
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const int64_t begin = tile * kTileRows;
    const int64_t in_tile = RowsIn(tile);
    for (int64_t r = 0; r < in_tile; ++r) {
      const int64_t row = begin + r;
      if (row + kRowsAhead < rows_) PrefetchQuery(row + kRowsAhead);
      call.query.Read(kernels_, b, first + row / group_, Head(row), buffer, rows + r * head_size_);
    }
    kernels_.scale(rows, in_tile * head_size_, call.ScoreFactor());
    arithmetic.pack_query(rows, in_tile, head_size_, query_ + tile * tile_bytes_);
  }
  std::fill_n(sum_, tiles_ * kTileRows * sum_stride_, 0.0f);
  std::fill_n(row_, rows_, SoftmaxRow{kNegativeInfinity, 0.0f, 1.0f});
}

void QueryBlock::PrefetchQuery(int64_t row) const {
  const InputRows& query = call_.query;
  const int64_t bytes = ElementSize(query.type);
  const char* data = query.data + query.layout.Offset(b_, first_ + row / group_, Head(row)) * bytes;
  for (int64_t line = 0; line < head_size_ * bytes; line += 64) __builtin_prefetch(data + line);
}

int64_t QueryBlock::ScratchFloats(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t count) {
  const int64_t head_size = call.geometry.head_size;
  const int64_t rows = call.geometry.group() * count;
  const int64_t tiles = TilesOf(rows);
  return FloatsFor(tiles * arithmetic.query_tile_bytes(head_size)) +
         Scratch::RoundUp(tiles * kTileRows * SumStride(head_size)) + Scratch::RoundUp(3 * rows) +
         Scratch::RoundUp(kTileRows * KeyPacker::BlockColumns(head_size)) +
         Scratch::RoundUp(kTileRows * arithmetic.panel_keys) + Scratch::RoundUp(kTileRows * head_size) +
         Scratch::RoundUp(2 * head_size);
}

bool QueryBlock::Sees(const KeyBlock& block) const {
  return block.columns > 0 && CacheRow(count_ - 1) >= span().start && block.newest_row >= Visible(0).begin;
}

/// Columns that queries [first, last] see between them, in order: both ends only grow from query to query.
ColumnRange QueryBlock::Columns(const KeyBlock& block, int64_t first, int64_t last) const {
  if (block.cache_row != nullptr) {
    // A query before the first real token sees nothing; what a local window hides is masked.
    return {0, CacheRow(last) < span().start ? 0 : block.columns};
  }
  const int64_t begin = std::max<int64_t>(Visible(first).begin - block.first_row, 0);
  const int64_t end = std::min(Visible(last).end - block.first_row, block.columns);
  return {std::min(begin, block.columns), std::max(end, std::min(begin, block.columns))};
}

void QueryBlock::Attend(const KeyBlock& block) {
  const bool plain = block.tokens == nullptr && call_.rules.v_skip == 0.0f;
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const ColumnRange columns = Columns(block, FirstQuery(tile), LastQuery(tile));
    if (columns.begin == columns.end) continue;
    Scores(block, tile, columns);
    ColumnRange seen[kTileRows];
    for (int64_t r = 0; r < RowsIn(tile); ++r) {
      const int64_t row = tile * kTileRows + r;
      seen[r] = r > 0 && row % group_ != 0 ? seen[r - 1] : Columns(block, row / group_, row / group_);
      if (seen[r].end <= seen[r].begin) seen[r] = {columns.begin, columns.begin};
      AdjustScores(block, row, seen[r], scores_ + r * score_stride_);
    }
    if (plain) {
      arithmetic_.softmax_and_add_values(scores_, score_stride_, RowsIn(tile), seen, row_ + tile * kTileRows,
                                         block.values, head_size_, sum_ + tile * kTileRows * sum_stride_, sum_stride_);
    } else {
      AddSomeValues(block, tile, columns, seen);
    }
  }
}

void QueryBlock::Scores(const KeyBlock& block, int64_t tile, ColumnRange columns) {
  const int64_t panel_keys = arithmetic_.panel_keys;
  const int64_t first = columns.begin / panel_keys;
  if (block.held == nullptr) {
    arithmetic_.scores(query_ + tile * tile_bytes_, RowsIn(tile),
                       block.exact + first * arithmetic_.key_panel_bytes(head_size_), columns.end - first * panel_keys,
                       head_size_, scores_ + first * panel_keys, score_stride_);
    return;
  }
  for (int64_t panel = first; panel * panel_keys < columns.end; ++panel) {
    ScorePanel(block, tile, panel, std::min(columns.end - panel * panel_keys, panel_keys));
  }
}

/// Scores where some queries may read k̂.
void QueryBlock::ScorePanel(const KeyBlock& block, int64_t tile, int64_t panel, int64_t columns) {
  const char* query = query_ + tile * tile_bytes_;
  const int64_t rows = RowsIn(tile);
  const int64_t panel_keys = arithmetic_.panel_keys;
  const int64_t panel_offset = panel * arithmetic_.key_panel_bytes(head_size_);
  const int64_t first_row = block.first_row + panel * panel_keys;
  float* scores = scores_ + panel * panel_keys;
  const int64_t held_first = HeldEnd(FirstQuery(tile)) - first_row;
  const int64_t held_last = HeldEnd(LastQuery(tile)) - first_row;
  if (held_last > 0 && columns <= held_first) {
    arithmetic_.scores(query, rows, block.held + panel_offset, columns, head_size_, scores, score_stride_);
    return;
  }
  arithmetic_.scores(query, rows, block.exact + panel_offset, columns, head_size_, scores, score_stride_);
  if (held_last <= 0) return;
  // The window's edge runs through this panel: every query takes k̂ up to its own.
  arithmetic_.scores(query, rows, block.held + panel_offset, columns, head_size_, held_scores_, panel_keys);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t held = std::min(HeldEnd((tile * kTileRows + r) / group_) - first_row, columns);
    if (held <= 0) continue;
    std::memcpy(scores + r * score_stride_, held_scores_ + r * panel_keys, static_cast<size_t>(held) * sizeof(float));
  }
}

/// Softmax and values where rows stand for runs, or values may be left out.
void QueryBlock::AddSomeValues(const KeyBlock& block, int64_t tile, ColumnRange columns, const ColumnRange* seen) {
  const bool counted = call_.skipped != nullptr && call_.rules.v_skip > 0.0f;
  const int64_t multiple = arithmetic_.value_multiple;
  const ColumnRange written{columns.begin / multiple * multiple, (columns.end + multiple - 1) / multiple * multiple};
  uint32_t stretches = 0;
  for (int64_t r = 0; r < RowsIn(tile); ++r) {
    const int64_t row = tile * kTileRows + r;
    float* scores = scores_ + r * score_stride_;
    stretches |=
        counted ? CountedSoftmax(block, row, seen[r], written, scores)
                : arithmetic_.softmax(scores, seen[r], written, block.tokens, call_.rules.v_skip, row_ + row, scores);
    if (row_[row].keep != 1.0f) kernels_.scale(sum_ + row * sum_stride_, head_size_, row_[row].keep);
  }
  AddValues(block, tile, written, stretches);
}

/// Softcap, attention_bias and the local window over a block of the past.
void QueryBlock::AdjustScores(const KeyBlock& block, int64_t row, ColumnRange seen, float* scores) const {
  const int64_t i = row / group_;
  const int64_t count = seen.end - seen.begin;
  call_.Softcap(scores + seen.begin, count);
  if (call_.bias.present) {
    const int64_t offset = call_.BiasOffset(b_, Head(row), first_ + i);
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      const int64_t column = block.cache_row == nullptr ? block.first_row + j : block.cache_row[j];
      if (column >= 0) scores[j] += kLog2E * FloatAt(call_.bias.data, call_.bias.type, offset + column);
    }
  }
  if (block.cache_row == nullptr) return;
  const int64_t begin = Visible(i).begin;
  if (block.oldest_row >= begin) return;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    if (block.cache_row[j] >= 0 && block.cache_row[j] < begin) scores[j] = kNegativeInfinity;
  }
}

/// The row's softmax with every value left out counted; slower, for statistics.
uint32_t QueryBlock::CountedSoftmax(const KeyBlock& block, int64_t row, ColumnRange seen, ColumnRange written,
                                    float* scores) {
  SoftmaxRow& state = row_[row];
  std::fill(scores + written.begin, scores + seen.begin, 0.0f);
  std::fill(scores + seen.end, scores + written.end, 0.0f);
  const int64_t count = seen.end - seen.begin;
  float* values = scores + seen.begin;
  const float top = std::max(state.maximum, kernels_.maximum(values, count));
  state.keep = state.maximum > kNegativeInfinity ? std::exp2(state.maximum - top) : 1.0f;
  state.maximum = top;
  const float sum = kernels_.exp2_and_sum(values, count, top == kNegativeInfinity ? 0.0f : top);
  float denominator = block.tokens == nullptr ? sum : 0.0f;
  if (block.tokens != nullptr) {
    for (int64_t j = seen.begin; j < seen.end; ++j) denominator += scores[j] * block.tokens[j];
  }
  state.denominator = state.denominator * state.keep + denominator;
  if (top > kNegativeInfinity) {
    const bool has_held = block.cache_row == nullptr && call_.past == nullptr;
    const KeyRange held =
        has_held ? HeldKeys(call_.rules, span(), call_.geometry.new_tokens, CacheRow(row / group_)) : KeyRange{0, 0};
    call_.SkipValues(b_, kv_head_, held, block.first_row + seen.begin, count, values);
  }
  uint32_t stretches = 0;
  for (int64_t j = seen.begin; j < seen.end; ++j) {
    if (block.tokens != nullptr) scores[j] *= block.tokens[j];
    if (scores[j] != 0.0f) stretches |= 1u << (j / kStretch);
  }
  arithmetic_.convert_weights(scores, written, scores);
  return stretches;
}

void QueryBlock::AddValues(const KeyBlock& block, int64_t tile, ColumnRange keys, uint32_t stretches) {
  const int64_t weight_stride = score_stride_ * static_cast<int64_t>(sizeof(float)) / arithmetic_.weight_bytes;
  float* sum = sum_ + tile * kTileRows * sum_stride_;
  // Stretches of values that no row has a weight for are left out; the others are taken together.
  int64_t begin = keys.begin;
  while (begin < keys.end) {
    if ((stretches >> (begin / kStretch) & 1u) == 0) {
      begin = (begin / kStretch + 1) * kStretch;
      continue;
    }
    int64_t end = begin;
    while (end < keys.end && (stretches >> (end / kStretch) & 1u) != 0) {
      end = std::min((end / kStretch + 1) * kStretch, keys.end);
    }
    arithmetic_.add_values(scores_, weight_stride, RowsIn(tile), block.values, {begin, end}, head_size_, sum,
                           sum_stride_);
    begin = end;
  }
}

void QueryBlock::Write() {
  for (int64_t row = 0; row < rows_; ++row) {
    float* sum = sum_ + row * sum_stride_;
    kernels_.scale(sum, head_size_, call_.Finish(Head(row), row_[row].maximum, row_[row].denominator));
    call_.output.Write(kernels_, b_, first_ + row / group_, Head(row), sum);
  }
}

}  // namespace deltallm
