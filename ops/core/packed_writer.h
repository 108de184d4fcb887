// Appending tokens to one (batch row, KV head) of a packed cache, and coding those that leave the window:
// docs/cache-format.md, "Rows" and "Coding".
#pragma once

#include <cstdint>

#include "cache/packed_rows.h"
#include "core/key_coder.h"

namespace deltallm {

/// The two slabs of one (batch row, KV head).
struct PackedSlabs {
  uint8_t* key;
  uint8_t* value;
};

/// What was decided when tokens were coded.
struct CodingCounts {
  int64_t tokens = 0;
  int64_t held = 0;  ///< channels (element) or tokens (row)
};

/// Writes into the slabs of one head. What is still open, the running mean of the last run, is written by Finish.
class PackedWriter {
 public:
  PackedWriter(const PackedCoding& coding, const PackedLayout& layout, const KeyCoder& coder, bool runs_merge,
               int64_t kv_head, PackedSlabs slabs, const PackedState& state)
      : coding_(coding),
        layout_(layout),
        coder_(coder),
        runs_merge_(runs_merge),
        kv_head_(kv_head),
        slabs_(slabs),
        state_(state) {}

  /// Appends tokens [first, last), counted from the first real one; keys[t − first] and values[t − first] are their
  /// rows of D float32, `stride` floats apart.
  void Append(int64_t first, int64_t last, const float* keys, const float* values, int64_t stride);

  /// Writes what is open, and the header.
  void Finish();

  const PackedState& state() const { return state_; }
  const CodingCounts& counts() const { return counts_; }

 private:
  int64_t WindowSlot(int64_t token) const { return layout_.sinks + (token - layout_.sinks) % layout_.window; }
  int64_t LastSlot() const { return layout_.first_coded() + layout_.WaitingRows(state_.coded_rows) - 1; }

  void WriteExact(int64_t slot, const float* key, const float* value);
  void Code(int64_t token, const PackedRow& key, const PackedRow& value);
  void CodeChannels(bool restarts, const PackedRow& key, const PackedRow& value);
  void CodeWholeRow(bool restarts, const PackedRow& key, const PackedRow& value);
  void LoadReference();
  void LoadMean();
  void Merge(const PackedRow& value);
  void AppendRow(const PackedRow& key, const PackedRow& value, uint16_t tag);

  const PackedCoding& coding_;
  const PackedLayout& layout_;
  const KeyCoder& coder_;
  bool runs_merge_;
  int64_t kv_head_;
  PackedSlabs slabs_;
  PackedState state_;
  CodingCounts counts_;

  // The last coded row, or the last sink: what the next key is held against.
  bool has_reference_ = false;
  bool reference_loaded_ = false;
  uint16_t reference_tag_ = 0;
  PackedRow reference_;
  float reference_key_[kMostPackedHeadSize];

  // The mean of the last row's run, once it has been needed; `run_open_`: not written yet.
  bool mean_loaded_ = false;
  bool run_open_ = false;
  PackedRow mean_;
  PackedRow residual_;
  float mean_value_[kMostPackedHeadSize];
};

}  // namespace deltallm
