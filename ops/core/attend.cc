#include "core/attend.h"

#include <cmath>
#include <limits>

namespace deltallm {

float AttendCall::ScoreFactor() const {
  return kLog2E * (rules.scale != 0.0f ? rules.scale : 1.0f / std::sqrt(static_cast<float>(geometry.head_size)));
}

int64_t AttendCall::BiasOffset(int64_t b, int64_t h, int64_t s) const {
  const int64_t bias_b = bias.shape[0] == 1 ? 0 : b;
  const int64_t bias_h = bias.shape[1] == 1 ? 0 : h;
  return ((bias_b * bias.shape[1] + bias_h) * bias.shape[2] + s) * bias.shape[3];
}

void AttendCall::AddBias(int64_t b, int64_t h, int64_t s, int64_t first, int64_t count, float* scores) const {
  if (!bias.present) return;
  const int64_t offset = BiasOffset(b, h, s) + first;
  for (int64_t i = 0; i < count; ++i) scores[i] += kLog2E * FloatAt(bias.data, bias.type, offset + i);
}

void AttendCall::SkipValues(int64_t b, int64_t kv_head, KeyRange held, int64_t first, int64_t count,
                            float* weights) const {
  const uint8_t* repeats = nullptr;
  if (skipped != nullptr && skipped->row_repeats != nullptr) {
    repeats = skipped->row_repeats + (b * geometry.kv_heads + kv_head) * rows.key.capacity;
  }
  int64_t left_out = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(weights[i] < rules.v_skip)) continue;
    weights[i] = 0.0f;
    const int64_t row = first + i;
    const bool in_run = repeats != nullptr && row >= held.begin && row < held.end && repeats[row] != 0;
    left_out += in_run ? 0 : 1;
  }
  if (skipped != nullptr && left_out > 0) {
    skipped->left_out[kv_head].fetch_add(left_out, std::memory_order_relaxed);
  }
}

float AttendCall::Finish(int64_t h, float maximum, float denominator) const {
  if (denominator == 0.0f) return 0.0f;
  if (!head_sink.present) return 1.0f / denominator;
  const float sink = kLog2E * FloatAt(head_sink.data, head_sink.type, h);
  const float top = std::max(maximum, sink);
  const float weight = std::exp2(maximum - top);
  return weight / (denominator * weight + std::exp2(sink - top));
}

void Attend(const AttendCall& call, const Parallel& parallel) {
  if (call.geometry.new_tokens == 1) {
    AttendOne(call, parallel);
  } else {
    AttendBlocks(call, parallel);
  }
}

}  // namespace deltallm
