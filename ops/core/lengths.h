// Where each row of a batch begins and ends in the cache: docs/spec.md section 7, "Lengths".
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace deltallm {

/// Cache rows of one batch row. Positions of the specification are counted from `start`.
struct RowSpan {
  int64_t past;    ///< Where the first new token goes.
  int64_t start;   ///< First real token; left padding lies before it.
  int64_t length;  ///< L_b: rows from here on hold nothing.

  /// Tokens of this call that the cache takes up, of `new_tokens`.
  int64_t Appended(int64_t new_tokens) const { return std::clamp<int64_t>(length - past, 0, new_tokens); }
  /// Tokens that lie in the cache when the call begins, and when it ends.
  int64_t PastTokens() const { return std::max<int64_t>(std::min(past, length) - start, 0); }
  int64_t Tokens() const { return std::max<int64_t>(length - start, 0); }
};

struct Lengths {
  std::vector<RowSpan> rows;
  int64_t total = 0;  ///< Cache rows this call speaks about.
};

/// Reads the lengths from whichever of the inputs are there, and refuses what contradicts itself.
///
/// seqlens_k: int32 [B] (valid tokens − 1), with total_sequence_length, one int32; attention_mask: int64 [B, T].
Lengths ResolveLengths(int64_t batch, int64_t new_tokens, int64_t past_capacity, const Tensor& seqlens_k,
                       const Tensor& total_sequence_length, const Tensor& attention_mask);

}  // namespace deltallm
