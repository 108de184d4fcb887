// Coding keys as they leave the window: docs/spec.md section 2 applied to rows of one KV head.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/attributes.h"
#include "core/tensor.h"
#include "kernels/hold.h"

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

  /// k̂ of a row against the k̂ before it; `held` may be `key`.
  void Code(int64_t kv_head, const float* key, const float* previous, float* held) const {
    static constexpr float kNoThreshold = 0.0f;
    const float* threshold = &kNoThreshold;
    if (threshold_ != nullptr) threshold = threshold_ + kv_head * (per_channel_ ? head_size_ : 1);
    if (!rules_.row_granularity) {
      HoldElements(key, previous, head_size_, threshold, per_channel_ ? 1 : 0, held);
      return;
    }
    const float* weight = row_weight_ == nullptr ? nullptr : row_weight_ + kv_head * head_size_;
    const bool holds = HoldsRow(key, previous, head_size_, *threshold, weight, rules_.row_rule);
    std::memmove(held, holds ? previous : key, static_cast<size_t>(head_size_) * sizeof(float));
  }

  /// Whether the row at `position` (counted from the first real token) is transmitted in any case.
  bool Restarts(int64_t position) const {
    return position == 0 || (rules_.refresh > 0 && position % rules_.refresh == 0);
  }

 private:
  HoldRules rules_;
  const float* threshold_;
  bool per_channel_;
  const float* row_weight_;
  int64_t head_size_;
};

}  // namespace deltallm
