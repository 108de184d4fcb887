// What a call of DeltaAttention brings and where it goes, whatever the cache's format.
#pragma once

#include "core/attend.h"
#include "core/delta_attention.h"
#include "core/delta_plan.h"
#include "core/rows_io.h"

namespace deltallm {

enum class NewPart { kQuery, kKey, kValue };

/// Where the new rows lie, in the packed query or in inputs of their own; keys and queries are rotated when read.
InputRows NewRows(const DeltaAttentionInputs& inputs, const DeltaPlan& plan, NewPart part);

/// The attention of the call's queries, without the keys and values they read. `plan` must outlive it.
AttendCall AttentionOf(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                       const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels);

/// Refuses one buffer for a past and a present of different capacity.
void CheckSharedBuffers(const DeltaAttentionInputs& inputs, const DeltaPlan& plan,
                        const DeltaAttentionOutputs& outputs);

}  // namespace deltallm
