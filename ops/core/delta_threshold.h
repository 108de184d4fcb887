// The operator DeltaThreshold below ONNX Runtime: docs/spec.md sections 2 and 7.
#pragma once

#include "core/attributes.h"
#include "core/parallel.h"
#include "core/tensor.h"

namespace deltallm {

struct DeltaThresholdInputs {
  Tensor key;         ///< float [B, Hkv, N, D]
  Tensor reference;   ///< the key's type, [B, Hkv, D]
  Tensor threshold;   ///< float32 [Hkv] or [Hkv, D]
  Tensor row_weight;  ///< float32 [Hkv, D], optional
  Tensor transmit;    ///< bool [B, N], optional
};

/// Throws Refusal for inputs that do not fit together.
void CheckDeltaThreshold(const HoldRules& rules, const DeltaThresholdInputs& inputs);

/// held_key and delta have the key's shape and type; delta is the float32 difference, rounded once.
void RunDeltaThreshold(const HoldRules& rules, const DeltaThresholdInputs& inputs, void* held_key, void* delta,
                       const Kernels& kernels, const Parallel& parallel);

}  // namespace deltallm
