#include <cstdlib>

#include "core/hybrid_window_attention.h"
#include "core/select_kernels.h"
#include "ort/operators.h"

namespace deltallm::ort {

HybridWindowAttentionOp::HybridWindowAttentionOp(const NodeInfo& node)
    : rules_(ReadAttentionRules(node)), kernels_(SelectKernels(std::getenv("DELTALLM_ISA"))) {}

void HybridWindowAttentionOp::Run(const RunContext& context) const {
  const HybridWindowInputs in{context.Input(0), context.Input(1), context.Input(2), context.Input(3), context.Input(4),
                              context.Input(5), context.Input(6), context.Input(7), context.Input(8)};
  const HybridWindowPlan plan = MakeHybridWindowPlan(in);
  const MutableTensor output = context.Output(0, "output", in.query.shape, in.query.type);
  RunHybridWindowAttention(rules_, in, plan, output.data, kernels_, context.pool());
}

void HybridWindowAttentionOp::InferShapes(const InferenceContext& context) { context.SetOutput(0, context.Input(0)); }

}  // namespace deltallm::ort
