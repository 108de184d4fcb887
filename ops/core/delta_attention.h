// The operator DeltaAttention below ONNX Runtime: append, code, attend, count.
#pragma once

#include "core/delta_plan.h"
#include "core/parallel.h"

namespace deltallm {

/// Buffers of the shapes that the plan names. present_key and present_value may be past_key's and past_value's buffers.
struct DeltaAttentionOutputs {
  MutableTensor output;         ///< the query's type
  void* present_key = nullptr;  ///< the cache's type
  void* present_value = nullptr;
  int64_t* statistics = nullptr;  ///< null: not wanted
};

/// Computes one call. Pure: no state is kept, and any number of calls may run at once.
void RunDeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                       const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels,
                       const Parallel& parallel);

}  // namespace deltallm
