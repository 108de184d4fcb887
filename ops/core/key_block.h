// A block of keys and values in the prefill kernels' layout, packed from a cache.
#pragma once

#include <cstdint>

#include "core/attend.h"
#include "core/scratch.h"
#include "kernels/prefill_kernels.h"

namespace deltallm {

/// At most PrefillArithmetic::kMostColumns keys. Column j is cache row first_row + j, or cache_row[j] where that is
/// given.
struct KeyBlock {
  int64_t columns = 0;
  int64_t first_row = 0;
  const int64_t* cache_row = nullptr;  ///< [columns], a block of the past; −1: seen by every query
  int64_t oldest_row = 0;              ///< the least cache_row that is not −1
  int64_t newest_row = 0;              ///< the largest cache_row; kSeenByAll if one is −1
  const float* tokens = nullptr;       ///< [columns]; null: 1 each
  const char* exact = nullptr;         ///< panels of keys as they came
  const char* held = nullptr;          ///< panels of k̂; null: `exact` holds k̂ where it is read
  const char* values = nullptr;

  static constexpr int64_t kSeenByAll = INT64_MAX;
};

/// Packs blocks of one (batch row, KV head), each in place of the one before.
class KeyPacker {
 public:
  /// `head` counts (batch row, KV head) pairs.
  KeyPacker(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t b, int64_t head, Scratch* scratch);

  static int64_t ScratchFloats(const AttendCall& call, const PrefillArithmetic& arithmetic);

  /// Keys of a block, a multiple of 64: as many as stay in the second-level cache with the queries.
  static int64_t BlockColumns(int64_t head_size);

  /// Cache rows `rows`. Queries read those before some row between held_first and held_last as k̂, and the others
  /// exactly.
  KeyBlock PackRows(KeyRange rows, int64_t held_first, int64_t held_last) const;

  /// As many blocks of call.past as fit, from number *block on, which is moved behind them.
  KeyBlock PackPast(int64_t* block) const;

 private:
  const char* KeyRow(int64_t row, bool held) const;
  void AddPast(const PastBlock& past, KeyBlock* block) const;

  const AttendCall& call_;
  const PrefillArithmetic& arithmetic_;
  int64_t b_;
  int64_t head_;
  int64_t panel_bytes_;
  int64_t origin_;      // cache row of call.rows' row 0
  int64_t held_begin_;  // first cache row that k̂ is read of
  char* exact_;
  char* held_;
  char* values_;
  PastBlock past_;
};

}  // namespace deltallm
