#include <cstdlib>

#include "core/delta_threshold.h"
#include "core/select_kernels.h"
#include "ort/operators.h"

namespace deltallm::ort {

DeltaThresholdOp::DeltaThresholdOp(const NodeInfo& node)
    : rules_(ReadHoldRules(node, false)), kernels_(SelectKernels(std::getenv("DELTALLM_ISA"))) {}

void DeltaThresholdOp::Run(const RunContext& context) const {
  const DeltaThresholdInputs in{context.Input(0), context.Input(1), context.Input(2), context.Input(3),
                                context.Input(4)};
  CheckDeltaThreshold(rules_, in);
  const MutableTensor held = context.Output(0, "held_key", in.key.shape, in.key.type);
  const MutableTensor delta = context.Output(1, "delta", in.key.shape, in.key.type);
  RunDeltaThreshold(rules_, in, held.data, delta.data, kernels_, context.pool());
}

void DeltaThresholdOp::InferShapes(const InferenceContext& context) { context.SetOutput(0, context.Input(0)); }

}  // namespace deltallm::ort
