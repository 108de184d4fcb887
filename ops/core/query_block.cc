#include "core/query_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace deltallm {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
// Scores are in units of log 2: a multiplication less for every one of them.
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;
// Scores of the tiles that go through softmax and values together, a strip: they stay in the first-level cache.
constexpr int64_t kStripScores = 6144;
constexpr int64_t kMostTilesPerStrip = 8;
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
      columns_(KeyPacker::BlockColumns(head_size_)),
      tiles_per_strip_(kStripScores / (kTileRows * columns_)),
      query_(reinterpret_cast<char*>(scratch->Take((tiles_ * tile_bytes_ + 3) / 4))),
      sum_(scratch->Take(tiles_ * kTileRows * sum_stride_)),
      row_(reinterpret_cast<SoftmaxRow*>(scratch->Take(3 * rows_))),
      scores_(scratch->Take(kStripScores)),
      weights_(reinterpret_cast<char*>(
          arithmetic.weight_bytes == 4 ? scores_ : scratch->Take((kStripScores * arithmetic.weight_bytes + 3) / 4))),
      held_scores_(scratch->Take(kTileRows * arithmetic.panel_keys)) {
  float* rows = scratch->Take(kTileRows * head_size_);
  float* buffer = scratch->Take(2 * head_size_);
  for (int64_t tile = 0; tile < tiles_; ++tile) {
    const int64_t begin = tile * kTileRows;
    const int64_t in_tile = RowsIn(tile);
    for (int64_t r = 0; r < in_tile; ++r) {
      const int64_t row = begin + r;
      PrefetchQuery(std::min(row + kRowsAhead, rows_ - 1));
      call.query.Read(kernels_, b, first + row / group_, Head(row), buffer, rows + r * head_size_);
    }
    kernels_.scale(rows, in_tile * head_size_, call.scale() * kLog2E);
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
         Scratch::RoundUp(kStripScores) + FloatsFor(kStripScores * arithmetic.weight_bytes) +
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

ColumnRange QueryBlock::TileColumns(const KeyBlock& block, int64_t tile) const {
  return Columns(block, FirstQuery(tile), LastQuery(tile));
}

void QueryBlock::Attend(const KeyBlock& block) {
  for (int64_t first = 0; first < tiles_; first += tiles_per_strip_) {
    const int64_t last = std::min(tiles_, first + tiles_per_strip_);
    Scores(block, first, last);
    for (int64_t tile = first; tile < last; ++tile) {
      const ColumnRange columns = TileColumns(block, tile);
      if (columns.begin == columns.end) continue;
      const int64_t multiple = arithmetic_.value_multiple;
      const ColumnRange written{columns.begin / multiple * multiple,
                                (columns.end + multiple - 1) / multiple * multiple};
      const int64_t offset = (tile - first) * kTileRows * columns_;
      char* weights = weights_ + offset * arithmetic_.weight_bytes;
      const uint32_t stretches = Weights(block, tile, written, scores_ + offset, weights);
      AddValues(block, tile, written, stretches, weights);
    }
  }
}

void QueryBlock::Scores(const KeyBlock& block, int64_t first_tile, int64_t last_tile) {
  ColumnRange tile_columns[kMostTilesPerStrip];
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    tile_columns[tile - first_tile] = TileColumns(block, tile);
  }
  const int64_t panel_keys = arithmetic_.panel_keys;
  for (int64_t panel = 0; panel * panel_keys < block.columns; ++panel) {
    const int64_t begin = panel * panel_keys;
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      const ColumnRange columns = tile_columns[tile - first_tile];
      const int64_t end = std::min(columns.end, begin + panel_keys);
      if (end <= std::max(begin, columns.begin)) continue;
      ScorePanel(block, tile, panel, end - begin, scores_ + (tile - first_tile) * kTileRows * columns_ + begin);
    }
  }
}

void QueryBlock::ScorePanel(const KeyBlock& block, int64_t tile, int64_t panel, int64_t columns, float* scores) {
  const char* query = query_ + tile * tile_bytes_;
  const int64_t rows = RowsIn(tile);
  const int64_t panel_offset = panel * arithmetic_.key_panel_bytes(head_size_);
  const int64_t first_row = block.first_row + panel * arithmetic_.panel_keys;
  const int64_t held_first = HeldEnd(FirstQuery(tile)) - first_row;
  const int64_t held_last = HeldEnd(LastQuery(tile)) - first_row;
  if (block.held == nullptr || held_last <= 0 || columns > held_first) {
    arithmetic_.scores(query, rows, block.exact + panel_offset, columns, head_size_, scores, columns_);
    if (block.held == nullptr || held_last <= 0) return;
  } else {
    arithmetic_.scores(query, rows, block.held + panel_offset, columns, head_size_, scores, columns_);
    return;
  }
  // The window's edge runs through this panel: every query takes k̂ up to its own.
  const int64_t panel_keys = arithmetic_.panel_keys;
  arithmetic_.scores(query, rows, block.held + panel_offset, columns, head_size_, held_scores_, panel_keys);
  for (int64_t row = tile * kTileRows; row < std::min((tile + 1) * kTileRows, rows_); ++row) {
    const int64_t held = std::min(HeldEnd(row / group_) - first_row, columns);
    if (held <= 0) continue;
    const int64_t r = row - tile * kTileRows;
    std::memcpy(scores + r * columns_, held_scores_ + r * panel_keys, static_cast<size_t>(held) * sizeof(float));
  }
}

/// The tile's weights, and the sums of values so far brought down to the new maxima.
uint32_t QueryBlock::Weights(const KeyBlock& block, int64_t tile, ColumnRange written, float* scores, char* weights) {
  const bool counted = call_.skipped != nullptr && call_.rules.v_skip > 0.0f;
  uint32_t stretches = 0;
  for (int64_t r = 0; r < RowsIn(tile); ++r) {
    const int64_t row = tile * kTileRows + r;
    float* row_scores = scores + r * columns_;
    char* row_weights = weights + r * columns_ * arithmetic_.weight_bytes;
    ColumnRange seen = Columns(block, row / group_, row / group_);
    if (seen.end <= seen.begin) seen = {written.begin, written.begin};
    AdjustScores(block, row, seen, row_scores);
    stretches |= counted ? CountedSoftmax(block, row, seen, written, row_scores, row_weights)
                         : arithmetic_.softmax(row_scores, seen, written, block.tokens, call_.rules.v_skip, row_ + row,
                                               row_weights);
    if (row_[row].keep != 1.0f) kernels_.scale(sum_ + row * sum_stride_, head_size_, row_[row].keep);
  }
  return stretches;
}

/// Softcap, attention_bias and the local window over a block of the past.
void QueryBlock::AdjustScores(const KeyBlock& block, int64_t row, ColumnRange seen, float* scores) const {
  const int64_t i = row / group_;
  const int64_t count = seen.end - seen.begin;
  // cap · tanh(x / cap) keeps its form in any unit.
  if (call_.rules.softcap > 0.0f) kernels_.softcap(scores + seen.begin, count, call_.rules.softcap * kLog2E);
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
                                    float* scores, char* weights) {
  SoftmaxRow& state = row_[row];
  std::fill(scores + written.begin, scores + seen.begin, 0.0f);
  std::fill(scores + seen.end, scores + written.end, 0.0f);
  const int64_t count = seen.end - seen.begin;
  float* values = scores + seen.begin;
  const float top = std::max(state.maximum, kernels_.maximum(values, count));
  state.keep = state.maximum > kNegativeInfinity ? std::exp2(state.maximum - top) : 1.0f;
  state.maximum = top;
  kernels_.scale(values, count, kLn2);
  const float sum = kernels_.exp_and_sum(values, count, top == kNegativeInfinity ? 0.0f : top * kLn2);
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
  arithmetic_.convert_weights(scores, written, weights);
  return stretches;
}

void QueryBlock::AddValues(const KeyBlock& block, int64_t tile, ColumnRange keys, uint32_t stretches,
                           const char* weights) {
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
    arithmetic_.add_values(weights, columns_, RowsIn(tile), block.values, {begin, end}, head_size_, sum, sum_stride_);
    begin = end;
  }
}

void QueryBlock::Write() {
  for (int64_t row = 0; row < rows_; ++row) {
    float* sum = sum_ + row * sum_stride_;
    kernels_.scale(sum, head_size_, call_.Finish(Head(row), row_[row].maximum * kLn2, row_[row].denominator));
    call_.output.Write(kernels_, b_, first_ + row / group_, Head(row), sum);
  }
}

}  // namespace deltallm
