// What a call finds in a packed cache: its layout, and a header that has been checked.
#pragma once

#include "core/delta_plan.h"

namespace deltallm {

/// Everything but the capacity. Refuses head sizes whose integer sums could overflow.
PackedLayout MakePackedLayout(const DeltaAttentionAttributes& attributes, int64_t head_size);

/// Fills the plan's packed part: the layouts, and for every head what the call keeps of its past, which after a rewind
/// may be less than the header says. Refuses a header that is not of such a cache, and a rewind that cannot be done.
void CheckPackedPast(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs, DeltaPlan& plan);

}  // namespace deltallm
