// docs/cache-format.md as plain lists of rows: what the packed caches are judged by. One (batch row, KV head).
#pragma once

#include <string>
#include <vector>

#include "core/attributes.h"

namespace deltallm::test {

/// A row of 8 bits.
struct ModelRow {
  std::vector<int> codes;
  uint16_t scale = 0;
  int tag = 0;

  std::vector<float> Decoded() const;
};

/// R8.
ModelRow RoundedRow(const float* x, int64_t head_size);

/// 128 rows of 4 bits: codes by row and channel, scales and zeros of channels (keys) or rows (values).
struct ModelBlock {
  std::vector<std::vector<int>> codes;
  std::vector<uint16_t> scale, zero;
  std::vector<int> tags;
  bool by_row = false;

  std::vector<float> DecodedRow(size_t row) const;
};

/// What a query reads: keys with their values, how many tokens each stands for, and the token (−1 within runs).
struct ModelEntry {
  std::vector<float> key, value;
  int tokens;
  int64_t token;
  bool coded;
};

class PackedModel {
 public:
  PackedModel(const DeltaAttentionAttributes& attributes, int64_t head_size, const float* threshold, bool per_channel,
              const float* row_weight, bool runs_merge);

  void Append(const float* key, const float* value);

  /// "" if the slabs hold this cache, else the first difference. `rows` is the row area's number of rows.
  std::string Compare(const uint8_t* key_slab, const uint8_t* value_slab, int64_t capacity) const;

  std::vector<ModelEntry> Entries() const;
  int64_t tokens() const { return tokens_; }
  int64_t coded() const { return coded_; }
  /// Held channels (element) or tokens (row) of all coded tokens.
  int64_t held() const { return held_; }
  int64_t bytes() const;

 private:
  void Code(int64_t token, const ModelRow& key, const ModelRow& value);
  void AppendCoded(ModelRow key, const ModelRow& value, int tag);
  int64_t Slot(int64_t token) const;
  int64_t RowBytes() const { return (size_ + 3) / 4 * 4 + 4; }
  int64_t BytesPerToken() const;
  int64_t RowArea(int64_t capacity) const;

  DeltaAttentionAttributes attributes_;
  int64_t size_;
  std::vector<float> threshold_, row_weight_;
  bool runs_merge_;
  int64_t tokens_ = 0, coded_ = 0, coded_rows_ = 0, held_ = 0;
  std::vector<ModelRow> keys_, values_;  // of all tokens as they came in, rounded
  std::vector<ModelRow> coded_keys_, coded_values_;
  bool has_residual_ = false;
  ModelRow residual_;
  std::vector<ModelBlock> key_blocks_, value_blocks_;
};

}  // namespace deltallm::test
