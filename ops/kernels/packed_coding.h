// Rounding, coding and sealing rows of the packed caches of docs/cache-format.md, as a table of plain functions like
// kernels.h.
//
// What these functions write does not depend on the instruction set: every float operation is rounded on its own, and
// no sum is taken in another order. They read only what they name; sizes are checked by the callers.
#pragma once

#include <cstdint>

#include "kernels/hold.h"
#include "kernels/packed_kernels.h"

namespace deltallm {

/// A key or value row as it is stored; the decoded channel c is codes[c] · scale. D′ is D rounded up to 4.
struct PackedRow {
  alignas(64) int8_t codes[kMostPackedHeadSize];  ///< [D′]; 0 from D on
  uint16_t scale;                                 ///< half precision
};

struct PackedCoding {
  const char* isa;

  /// R8 of docs/cache-format.md: x[head_size], finite or not. Writes the codes up to D′.
  void (*round_row)(const float* x, int64_t head_size, PackedRow* row);

  /// out[c] = codes[c] · scale for c < count.
  void (*decode_row)(const PackedRow& row, int64_t count, float* out);

  /// Codes [D′] of row r < 4 of a group of a value tile, int8 [D′][4]; the other rows' bytes stay.
  void (*read_value)(const uint8_t* group, int64_t r, int64_t channels, int8_t* codes);
  void (*write_value)(const int8_t* codes, int64_t channels, uint8_t* group, int64_t r);

  /// HoldsRow and HoldElements of hold.h.
  bool (*holds_row)(const float* key, const float* previous, int64_t head_size, float threshold, const float* weight,
                    RowRule rule);
  int64_t (*hold_elements)(const float* key, const float* previous, int64_t head_size, const float* threshold,
                           int64_t threshold_step, float* held);

  /// Merges a value row into the mean of a run that has `tokens` tokens with it. mean[D′] is replaced by what is stored
  /// of mean + (value − mean) / tokens: the sum of the decoded `row` and `residual`.
  void (*merge_value)(const PackedRow& value, float tokens, int64_t head_size, float* mean, PackedRow* row,
                      PackedRow* residual);

  /// An int4 block of block_bytes out of the 128 rows from row `first` of whole tiles that lie one after the other;
  /// tiles behind the last of these rows are not read.
  void (*seal_keys)(const uint8_t* tiles, int64_t first, int64_t head_size, uint8_t* block, int64_t block_bytes);
  void (*seal_values)(const uint8_t* tiles, int64_t first, int64_t head_size, uint8_t* block, int64_t block_bytes);
};

extern const PackedCoding kScalarPackedCoding;
extern const PackedCoding kAvx2PackedCoding;
extern const PackedCoding kAvx512PackedCoding;

}  // namespace deltallm
