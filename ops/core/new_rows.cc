#include "core/new_rows.h"

#include <tuple>

#include "core/refusal.h"

namespace deltallm {

InputRows NewRows(const DeltaAttentionInputs& inputs, const DeltaPlan& plan, NewPart part) {
  const Geometry& geometry = plan.geometry;
  const bool own_input = !plan.packed_qkv && part != NewPart::kQuery;
  const Tensor& tensor = !own_input ? inputs.query : part == NewPart::kKey ? inputs.key : inputs.value;
  const int64_t width = tensor.shape[2];
  int64_t first_head = 0;
  if (plan.packed_qkv && part != NewPart::kQuery) {
    first_head = geometry.query_heads + (part == NewPart::kValue ? geometry.kv_heads : 0);
  }
  InputRows rows;
  rows.data = tensor.as<char>() + first_head * geometry.head_size * ElementSize(tensor.type);
  rows.type = tensor.type;
  rows.layout = {geometry.new_tokens * width, width, geometry.head_size};
  rows.head_size = geometry.head_size;
  rows.new_tokens = geometry.new_tokens;
  rows.rotary = part == NewPart::kValue ? nullptr : &plan.rotary;
  return rows;
}

AttendCall AttentionOf(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                       const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels) {
  const Geometry& geometry = plan.geometry;
  const int64_t width = geometry.query_heads * geometry.head_size;
  AttendCall call;
  call.kernels = &kernels;
  call.geometry = geometry;
  call.rules = attributes.attention;
  call.spans = plan.lengths.rows.data();
  call.query = NewRows(inputs, plan, NewPart::kQuery);
  call.bias = inputs.attention_bias;
  call.head_sink = inputs.head_sink;
  call.output = {outputs.output.as<char>(),
                 outputs.output.type,
                 {geometry.new_tokens * width, width, geometry.head_size},
                 geometry.head_size};
  return call;
}

void CheckSharedBuffers(const DeltaAttentionInputs& inputs, const DeltaPlan& plan,
                        const DeltaAttentionOutputs& outputs) {
  if (plan.past_capacity == plan.capacity) return;
  for (const auto& [name, past, present] : {std::tuple{"key", &inputs.past_key, outputs.present_key},
                                            std::tuple{"value", &inputs.past_value, outputs.present_value}}) {
    if (past->present && past->data == present && past->data != nullptr) {
      Refuse("past_", name, " and present_", name, " share a buffer, but one has ", plan.past_capacity,
             " rows and the other ", plan.capacity, ": give a past_", name, " with at least ", plan.capacity, " rows.");
    }
  }
}

}  // namespace deltallm
