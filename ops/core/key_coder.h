// Coding keys as they leave the window: docs/spec.md section 2 applied to rows of one KV head.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/attributes.h"
#include "core/tensor.h"
#include "kernels/hold.h"
#include "kernels/packed_coding.h"

namespace deltallm {

/// Thresholds and weights of a layer.
class KeyCoder {
 public:
  KeyCoder(const HoldRules& rules, const Tensor& threshold, const Tensor& row_weight, int64_t head_size)
      : rules_(rules),
        threshold_(threshold.present ? threshold.as<float>() : nullptr),
        per_channel_(threshold.present && threshold.shape.rank() == 2),
        row_weight_(row_weight.present ? row_weight.as<float>() : nullptr),
        head_size_(head_size) {}

  bool row_granularity() const { return rules_.row_granularity; }

  /// k̂ of a row against the k̂ before it; `held` may be `key`.
  void Code(int64_t kv_head, const float* key, const float* previous, float* held) const {
    if (!rules_.row_granularity) {
      HoldChannels(kv_head, key, previous, held);
      return;
    }
    const bool holds = HoldsWholeRow(kv_head, key, previous);
    std::memmove(held, holds ? previous : key, static_cast<size_t>(head_size_) * sizeof(float));
  }

  /// Element granularity: k̂, and how many of its channels are held.
  int64_t HoldChannels(int64_t kv_head, const float* key, const float* previous, float* held) const {
    return HoldElements(key, previous, head_size_, Threshold(kv_head), per_channel_ ? 1 : 0, held);
  }

  /// Row granularity: whether k̂ is the row before.
  bool HoldsWholeRow(int64_t kv_head, const float* key, const float* previous) const {
    return HoldsRow(key, previous, head_size_, *Threshold(kv_head), RowWeight(kv_head), rules_.row_rule);
  }

  /// The same by the coding kernels of one instruction set, for packed caches.
  int64_t HoldChannels(const PackedCoding& coding, int64_t kv_head, const float* key, const float* previous,
                       float* held) const {
    return coding.hold_elements(key, previous, head_size_, Threshold(kv_head), per_channel_ ? 1 : 0, held);
  }
  bool HoldsWholeRow(const PackedCoding& coding, int64_t kv_head, const float* key, const float* previous) const {
    return coding.holds_row(key, previous, head_size_, *Threshold(kv_head), RowWeight(kv_head), rules_.row_rule);
  }

  /// Whether the row at `position` (counted from the first real token) is transmitted in any case.
  bool Restarts(int64_t position) const {
    return position == 0 || (rules_.refresh > 0 && position % rules_.refresh == 0);
  }

 private:
  const float* RowWeight(int64_t kv_head) const {
    return row_weight_ == nullptr ? nullptr : row_weight_ + kv_head * head_size_;
  }
  const float* Threshold(int64_t kv_head) const {
    static constexpr float kNoThreshold = 0.0f;
    if (threshold_ == nullptr) return &kNoThreshold;
    return threshold_ + kv_head * (per_channel_ ? head_size_ : 1);
  }

  HoldRules rules_;
  const float* threshold_;
  bool per_channel_;
  const float* row_weight_;
  int64_t head_size_;
};

}  // namespace deltallm
