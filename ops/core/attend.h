// Softmax attention over a cache of exact and held keys: docs/spec.md sections 3 and 5.
#pragma once

#include <atomic>
#include <cstdint>

#include "cache/float_cache.h"
#include "core/attributes.h"
#include "core/checks.h"
#include "core/lengths.h"
#include "core/parallel.h"
#include "core/past_blocks.h"
#include "core/rows_io.h"
#include "core/visibility.h"

namespace deltallm {

/// Keys and values of a layer. Row j of a head is read exactly from `key`; as k̂ it is row j − held_begin[b] of `held`,
/// or `key`'s own row where that is before held_begin[b] or there is no `held`: it was coded in an earlier call.
struct KeyValueRows {
  ConstFloatCache key;
  ConstFloatCache value;
  ConstFloatCache held;                 ///< data null: `key` holds k̂ already
  const int64_t* held_begin = nullptr;  ///< [B], with `held`

  const char* HeldRow(int64_t b, int64_t head, int64_t row) const {
    if (held.data == nullptr || row < held_begin[b]) return key.Row(head, row);
    return held.Row(head, row - held_begin[b]);
  }
};

/// Counts values left out by v_skip, except those of rows inside a run.
struct SkipCounter {
  std::atomic<int64_t>* left_out = nullptr;  ///< [Hkv]
  const uint8_t* row_repeats = nullptr;      ///< [B·Hkv, capacity], or null: no runs
};

// Scores are in units of log 2, so that a weight is 2^(score − maximum): a power of two is cheaper than one of e.
constexpr float kLog2E = 1.44269504088896341f;

struct AttendCall {
  const Kernels* kernels = nullptr;
  Geometry geometry;
  AttentionRules rules;
  const RowSpan* spans = nullptr;  ///< [B]
  InputRows query;
  KeyValueRows rows;
  Tensor bias;       ///< [B or 1, Hq or 1, S, columns], or absent
  Tensor head_sink;  ///< [Hq], or absent
  OutputRows output;
  SkipCounter* skipped = nullptr;  ///< null: not counted
  /// Null: `rows` holds every key. Else what earlier calls left, for AttendBlocks; `rows` then begins with the first new
  /// token, and its keys are all read exactly.
  const PastBlocks* past = nullptr;

  /// Turns query · key into a score.
  float ScoreFactor() const;

  /// Where the bias of (b, query head h, token s) for cache row 0 lies, in elements.
  int64_t BiasOffset(int64_t b, int64_t h, int64_t s) const;

  /// cap · tanh(x / cap) keeps its form in any unit.
  void Softcap(float* scores, int64_t count) const {
    if (rules.softcap > 0.0f) kernels->softcap(scores, count, rules.softcap * kLog2E);
  }

  /// scores[i] += bias of (b, query head h, token s, cache row first + i) for i < count.
  void AddBias(int64_t b, int64_t h, int64_t s, int64_t first, int64_t count, float* scores) const;

  /// Zeroes weights below ε (relative to the running maximum) and counts them. Key rows are [first, first + count);
  /// those in `held` are read as k̂.
  void SkipValues(int64_t b, int64_t kv_head, KeyRange held, int64_t first, int64_t count, float* weights) const;

  /// The share of a head's sink in the softmax: adds it to (maximum, denominator) and returns the factor that turns
  /// the sum of weighted values into the output row. 0 if the query saw no key.
  float Finish(int64_t h, float maximum, float denominator) const;
};

/// Fills the output. Any number of calls may run at once.
void Attend(const AttendCall& call, const Parallel& parallel);

/// S = 1: one query per batch row and head, split over keys where there are few heads. See attend_one.cc.
void AttendOne(const AttendCall& call, const Parallel& parallel);

/// Any S: blocks of queries against blocks of keys. See attend_block.cc.
void AttendBlocks(const AttendCall& call, const Parallel& parallel);

}  // namespace deltallm
