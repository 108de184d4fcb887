// A block of queries of one KV head and what they have gathered so far: maxima, denominators and sums of values.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/attend.h"
#include "core/key_block.h"
#include "core/scratch.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {

/// Queries [first, first + count) of batch row b, all query heads of one KV head. Row i·G + g is query first + i of
/// head g in the group, so that neighbouring rows see nearly the same keys.
class QueryBlock {
 public:
  QueryBlock(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t b, int64_t kv_head, int64_t first,
             int64_t count, Scratch* scratch);

  static int64_t ScratchFloats(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t count);

  /// Cache rows that at least one of the queries sees.
  KeyRange visible() const { return {Visible(0).begin, Visible(count_ - 1).end}; }
  /// Rows before these are read as k̂ by the first and by the last query.
  int64_t held_first() const { return HeldEnd(0); }
  int64_t held_last() const { return HeldEnd(count_ - 1); }

  /// False for a block of the past that a local window hides from all queries.
  bool Sees(const KeyBlock& block) const;

  /// One step of the online softmax: takes in a block of keys and values.
  void Attend(const KeyBlock& block);

  /// Writes the output rows.
  void Write();

 private:
  static constexpr int64_t kTileRows = PrefillArithmetic::kTileRows;

  const RowSpan& span() const { return call_.spans[b_]; }
  int64_t CacheRow(int64_t i) const { return span().past + first_ + i; }
  KeyRange Visible(int64_t i) const { return VisibleKeys(call_.rules, span(), CacheRow(i)); }
  int64_t HeldEnd(int64_t i) const { return HeldKeys(call_.rules, span(), call_.geometry.new_tokens, CacheRow(i)).end; }
  int64_t FirstQuery(int64_t tile) const { return tile * kTileRows / group_; }
  int64_t LastQuery(int64_t tile) const { return (std::min((tile + 1) * kTileRows, rows_) - 1) / group_; }
  int64_t RowsIn(int64_t tile) const { return std::min(kTileRows, rows_ - tile * kTileRows); }
  int64_t Head(int64_t row) const { return kv_head_ * group_ + row % group_; }

  void PrefetchQuery(int64_t row) const;
  ColumnRange Columns(const KeyBlock& block, int64_t first, int64_t last) const;
  void Scores(const KeyBlock& block, int64_t tile, ColumnRange columns);
  void ScorePanel(const KeyBlock& block, int64_t tile, int64_t panel, int64_t columns);
  void AdjustScores(const KeyBlock& block, int64_t row, ColumnRange seen, float* scores) const;
  void AddSomeValues(const KeyBlock& block, int64_t tile, ColumnRange columns, const ColumnRange* seen);
  uint32_t CountedSoftmax(const KeyBlock& block, int64_t row, ColumnRange seen, ColumnRange written, float* scores);
  void AddValues(const KeyBlock& block, int64_t tile, ColumnRange keys, uint32_t stretches);

  const AttendCall& call_;
  const Kernels& kernels_;
  const PrefillArithmetic& arithmetic_;
  int64_t b_;
  int64_t kv_head_;
  int64_t first_;
  int64_t count_;
  int64_t group_;
  int64_t rows_;
  int64_t tiles_;
  int64_t head_size_;
  int64_t tile_bytes_;
  int64_t sum_stride_;
  int64_t score_stride_;
  char* query_;         // [tiles]
  float* sum_;          // [tiles·6, sum_stride]
  SoftmaxRow* row_;     // [rows]
  float* scores_;       // [6, score_stride], of one tile; then its weights
  float* held_scores_;  // [6, panel_keys]
};

}  // namespace deltallm
