#include "core/delta_threshold.h"

#include "cache/float_cache.h"
#include "core/checks.h"
#include "core/key_coder.h"
#include "core/refusal.h"
#include "core/scratch.h"

namespace deltallm {

void CheckDeltaThreshold(const HoldRules& rules, const DeltaThresholdInputs& in) {
  CheckFloat("key", in.key);
  const Shape& shape = in.key.shape;
  if (shape.rank() != 4 || shape[1] < 1 || shape[3] < 1) {
    Refuse("key has shape ", shape.ToString(), ": give [batch, KV heads, rows, head size].");
  }
  CheckedProduct({shape[0], shape[1], shape[2], shape[3], 8});
  CheckType("reference", in.reference, in.key.type);
  CheckShape("reference", in.reference, Shape{shape[0], shape[1], shape[3]}, "batch, KV heads, head size");
  CheckThreshold(in.threshold, shape[1], shape[3], rules.row_granularity);
  CheckRowWeight(in.row_weight, shape[1], shape[3]);
  if (in.transmit.present) {
    CheckType("transmit", in.transmit, ElementType::kBool);
    CheckShape("transmit", in.transmit, Shape{shape[0], shape[2]}, "batch, rows");
  }
}

void RunDeltaThreshold(const HoldRules& rules, const DeltaThresholdInputs& in, void* held_key, void* delta,
                       const Kernels& kernels, const Parallel& parallel) {
  const Shape& shape = in.key.shape;
  const int64_t kv_heads = shape[1];
  const int64_t rows = shape[2];
  const int64_t head_size = shape[3];
  const KeyCoder coder(rules, in.threshold, in.row_weight, head_size);
  const ElementType type = in.key.type;
  const ConstFloatCache key{in.key.as<char>(), type, rows, head_size};
  const ConstFloatCache reference{in.reference.as<char>(), type, 1, head_size};
  const FloatCache held_rows{static_cast<char*>(held_key), type, rows, head_size};
  const FloatCache delta_rows{static_cast<char*>(delta), type, rows, head_size};

  ParallelFor(parallel, shape[0] * kv_heads, [&](int64_t head) {
    Scratch scratch(4 * Scratch::RoundUp(head_size));
    float* buffer = scratch.Take(head_size);
    float* previous = scratch.Take(head_size);
    float* held = scratch.Take(head_size);
    float* difference = scratch.Take(head_size);
    std::memcpy(previous, ReadRow(kernels, type, reference.Row(head, 0), head_size, buffer),
                static_cast<size_t>(head_size) * sizeof(float));
    for (int64_t row = 0; row < rows; ++row) {
      const float* key_row = ReadRow(kernels, type, key.Row(head, row), head_size, buffer);
      const bool transmit = in.transmit.present && in.transmit.as<uint8_t>()[head / kv_heads * rows + row] != 0;
      if (transmit) {
        std::memcpy(held, key_row, static_cast<size_t>(head_size) * sizeof(float));
      } else {
        coder.Code(head % kv_heads, key_row, previous, held);
      }
      for (int64_t c = 0; c < head_size; ++c) difference[c] = held[c] - previous[c];
      WriteRow(kernels, type, held, head_size, held_rows.Row(head, row));
      WriteRow(kernels, type, difference, head_size, delta_rows.Row(head, row));
      std::swap(previous, held);
    }
  });
}

}  // namespace deltallm
