// Micro-kernels for blocks of queries against blocks of keys (flash attention), as tables of plain functions like
// kernels.h. `prefill_scalar.cc` says what each function computes.
//
// Scores are in units of log 2: the queries come multiplied by log2(e), and a weight is 2^(score − maximum).
// Packed operands are opaque to the caller, who only keeps room for them; every one is aligned to 64 bytes.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace deltallm {

/// A stretch of keys that a row of scores covers: columns [begin, end).
struct ColumnRange {
  int64_t begin;
  int64_t end;
};

/// One row of the online softmax.
struct SoftmaxRow {
  float maximum;      ///< of all scores so far; −∞ at first
  float denominator;  ///< Σ tokens · 2^(score − maximum) so far
  float keep;         ///< out: what sums of values from before are to be multiplied by
};

/// The two products and the softmax between them in one arithmetic ("float32", …).
struct PrefillArithmetic {
  static constexpr int64_t kTileRows = 6;       ///< Query rows of a tile.
  static constexpr int64_t kMostColumns = 512;  ///< Keys of a block.
  static constexpr int64_t kSumAlignment = 16;  ///< Rows of sums are padded to a multiple of so many floats.

  int64_t panel_keys;      ///< Keys of a packed panel; divides 64.
  int64_t weight_bytes;    ///< Bytes of one weight.
  int64_t value_multiple;  ///< add_values takes values in multiples of so many; the rest has weight 0.

  int64_t (*query_tile_bytes)(int64_t head_size);
  int64_t (*key_panel_bytes)(int64_t head_size);
  int64_t (*value_block_bytes)(int64_t head_size);  ///< for kMostColumns rows

  /// Packs 1 to kTileRows query rows that lie one after the other; rows that are missing count as 0.
  void (*pack_query)(const float* rows, int64_t count, int64_t head_size, void* tile);

  /// Packs 1 to panel_keys rows of float32 or float16; keys that are missing count as 0.
  void (*pack_keys)(const void* const* rows, ElementType type, int64_t count, int64_t head_size, void* panel);

  /// Packs 1 or more rows that lie one after the other as the block's rows from `first` on, which is a multiple of
  /// value_multiple; rows that are missing in the last multiple count as 0.
  void (*pack_values)(const void* rows, ElementType type, int64_t first, int64_t count, int64_t head_size, void* block);

  /// scores[r·score_stride + j] = query row r · key j, for the first `rows` rows of the tile and the first `columns`
  /// keys of panels that lie one after the other. Further rows of the tile and keys of the last panel may be computed
  /// as well.
  void (*scores)(const void* tile, int64_t rows, const void* panels, int64_t columns, int64_t head_size, float* scores,
                 int64_t score_stride);

  /// Weights of one row: tokens[j] · 2^(scores[j] − maximum) for j in `seen`, after the maximum has been raised to
  /// theirs; 0 for the other j in `written`, which `seen` (maybe empty) lies in, and where 2^(…) < skip_below. `tokens`
  /// may be null: all 1. Destroys the scores; `weights` may be `scores`. Both have room for a multiple of 64. Returns a
  /// bit for every stretch of 64 columns that has a weight other than 0 (bit 0 for columns 0 … 63); where skip_below is
  /// 0, other bits may be set too.
  uint32_t (*softmax)(float* scores, ColumnRange seen, ColumnRange written, const float* tokens, float skip_below,
                      SoftmaxRow* row, void* weights);

  /// float32 weights in this arithmetic's form, for weights that were not computed by `softmax`.
  void (*convert_weights)(const float* weights, ColumnRange columns, void* converted);

  /// sum[r·sum_stride + c] += Σ_j weight[r][j] · value[j][c] over `keys` (both ends multiples of value_multiple) for
  /// the first `rows` rows of a tile; further ones may be computed as well. Rows of weights are weight_stride weights
  /// apart, rows of sums a multiple of kSumAlignment.
  void (*add_values)(const void* weights, int64_t weight_stride, int64_t rows, const void* block, ColumnRange keys,
                     int64_t head_size, float* sum, int64_t sum_stride);

  /// A step of the online softmax at once, with all tokens 1 and no value left out: for r < rows, takes row r's scores
  /// to weights as `softmax` does, multiplies its sums by `keep`, and adds the values of the columns seen[r]. Columns
  /// that other rows see have weight 0. Rows of scores have room for a multiple of 64 columns; they are destroyed.
  void (*softmax_and_add_values)(float* scores, int64_t score_stride, int64_t rows, const ColumnRange* seen,
                                 SoftmaxRow* row, const void* block, int64_t head_size, float* sum, int64_t sum_stride);
};

/// What one instruction set offers. Null: not on this processor.
struct PrefillKernels {
  const char* isa;
  const PrefillArithmetic* float32;
  const PrefillArithmetic* bfloat16;  ///< both products on bfloat16 inputs, float32 sums
  const PrefillArithmetic* int8;      ///< scores on 8-bit integers with a scale per row, values as in bfloat16
};

extern const PrefillArithmetic kAvx512PrefillFloat32;  ///< part of both AVX-512 tables

extern const PrefillKernels kScalarPrefillKernels;
extern const PrefillKernels kAvx2PrefillKernels;
extern const PrefillKernels kAvx512PrefillKernels;
extern const PrefillKernels kAvx512Bf16PrefillKernels;  ///< with AVX512_BF16 and AVX512_VNNI
extern const PrefillKernels kNeonPrefillKernels;

}  // namespace deltallm
