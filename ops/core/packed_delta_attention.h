// DeltaAttention over the packed caches: docs/cache-format.md, "What a call does".
#pragma once

#include "core/delta_attention.h"

namespace deltallm {

/// As RunDeltaAttention, for a plan with a packed cache.
void RunPackedDeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                             const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels,
                             const Parallel& parallel);

}  // namespace deltallm
