// The operator HybridWindowAttention below ONNX Runtime: docs/spec.md sections 3 and 7.
#pragma once

#include <vector>

#include "core/attributes.h"
#include "core/checks.h"
#include "core/lengths.h"
#include "core/parallel.h"
#include "core/tensor.h"

namespace deltallm {

struct HybridWindowInputs {
  Tensor query;           ///< float [B, Hq, S, D]
  Tensor key;             ///< float [B, Hkv, C, D]
  Tensor held_key;        ///< as key
  Tensor value;           ///< as key
  Tensor past_length;     ///< int64 [B]
  Tensor start;           ///< int64 [B]
  Tensor length;          ///< int64 [B]
  Tensor attention_bias;  ///< float [B or 1, Hq or 1, S, C], optional
  Tensor head_sink;       ///< float [Hq], optional
};

struct HybridWindowPlan {
  Geometry geometry;
  int64_t capacity = 0;  ///< C
  std::vector<RowSpan> rows;
};

/// Throws Refusal for inputs that do not fit together.
HybridWindowPlan MakeHybridWindowPlan(const HybridWindowInputs& inputs);

/// Writes output [B, Hq, S, D] in the query's type.
void RunHybridWindowAttention(const AttentionRules& rules, const HybridWindowInputs& inputs,
                              const HybridWindowPlan& plan, void* output, const Kernels& kernels,
                              const Parallel& parallel);

}  // namespace deltallm
