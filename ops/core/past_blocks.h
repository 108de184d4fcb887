// How a packed cache hands its rows to prefill: blocks of float32 rows, each standing for one or more tokens.
#pragma once

#include <cstdint>

namespace deltallm {

/// One block as `PastBlocks::Load` fills it.
struct PastBlock {
  static constexpr int64_t kMaxRows = 128;
  float* keys;         ///< [kMaxRows, D]
  float* values;       ///< [kMaxRows, D]
  float* tokens;       ///< [kMaxRows], how many tokens each row stands for
  int64_t* cache_row;  ///< [kMaxRows], as `KeyRange` counts them; −1: a run, seen by every query
  int64_t rows = 0;
};

/// Keys and values of earlier calls that a call with several queries reads as they lie in the cache. Every row belongs to
/// the past, so causality never hides it; a local window may. May be called from any number of threads.
class PastBlocks {
 public:
  virtual ~PastBlocks() = default;
  /// Blocks of (batch row, KV head) number `head`.
  virtual int64_t Count(int64_t head) const = 0;
  /// Must not use core/scratch.h: the caller's working memory lives there.
  virtual void Load(int64_t head, int64_t block, PastBlock* into) const = 0;
};

}  // namespace deltallm
