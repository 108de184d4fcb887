#include <cstdlib>

#include "core/delta_attention.h"
#include "core/select_kernels.h"
#include "ort/operators.h"

namespace deltallm::ort {
namespace {

using Op = DeltaAttentionOp;

/// Attributes and inputs of GroupQueryAttention that change its result and are not built here.
void RefuseUnsupported(const NodeInfo& node) {
  for (const auto& [index, name] :
       {std::pair{Op::kKScale, "k_scale"}, std::pair{Op::kVScale, "v_scale"},
        std::pair{Op::kQNormWeight, "q_norm_weight"}, std::pair{Op::kKNormWeight, "k_norm_weight"}}) {
    if (node.HasInput(index)) Refuse("Input ", index, " (", name, ") is given, but not supported: remove it.");
  }
  for (const char* name : {"smooth_softmax", "qk_output"}) {
    const int64_t value = node.Int(name, 0);
    // −1 is how GroupQueryAttention spells "off" for smooth_softmax.
    if (value > 0) Refuse("Attribute ", name, " is ", value, ", which is not supported: give 0.");
  }
  for (const char* name : {"k_quant_type", "v_quant_type"}) {
    const std::string value = node.String(name, "NONE");
    if (value != "NONE") Refuse("Attribute ", name, " is \"", value, "\", which is not supported: give \"NONE\".");
  }
  if (node.Int("kv_cache_bit_width", 0) != 0) {
    Refuse("Attribute kv_cache_bit_width is given, but not supported: remove it and use cache_format.");
  }
}

DeltaAttentionAttributes ReadAttributes(const NodeInfo& node) {
  DeltaAttentionAttributes attributes;
  attributes.num_heads = node.Int("num_heads", 0);
  attributes.kv_num_heads = node.Int("kv_num_heads", 0);
  attributes.do_rotary = node.Flag("do_rotary");
  attributes.rotary_interleaved = node.Flag("rotary_interleaved");
  attributes.attention = ReadAttentionRules(node);
  attributes.hold = ReadHoldRules(node, true);
  attributes.has_cache_format = node.Has("cache_format");
  if (attributes.has_cache_format) attributes.cache_format = ParseCacheFormat(node.String("cache_format", ""));
  attributes.Check();
  return attributes;
}

}  // namespace

DeltaAttentionOp::DeltaAttentionOp(const NodeInfo& node)
    : attributes_(ReadAttributes(node)), kernels_(SelectKernels(std::getenv("DELTALLM_ISA"))) {
  RefuseUnsupported(node);
  const ElementType query_type = node.InputType(kQuery);
  if (query_type != ElementType::kOther && !IsFloat(query_type)) {
    Refuse("query is of type ", TypeName(query_type), ": give float32 or float16.");
  }
  for (const auto& [index, name] : {std::pair{kPastKey, "past_key"}, std::pair{kPastValue, "past_value"}}) {
    const ElementType type = node.InputType(index);
    const ElementType expected = CacheType(attributes_.cache_format);
    if (attributes_.has_cache_format && type != ElementType::kOther && type != expected) {
      Refuse(name, " is of type ", TypeName(type), ", but cache_format is \"", FormatName(attributes_.cache_format),
             "\": give ", TypeName(expected), ".");
    }
  }
}

void DeltaAttentionOp::Run(const RunContext& context) const {
  DeltaAttentionInputs in;
  in.query = context.Input(kQuery);
  in.key = context.Input(kKey);
  in.value = context.Input(kValue);
  in.past_key = context.Input(kPastKey);
  in.past_value = context.Input(kPastValue);
  in.seqlens_k = context.Input(kSeqlensK);
  in.total_sequence_length = context.Input(kTotalSequenceLength);
  in.cos_cache = context.Input(kCosCache);
  in.sin_cache = context.Input(kSinCache);
  in.position_ids = context.Input(kPositionIds);
  in.attention_bias = context.Input(kAttentionBias);
  in.head_sink = context.Input(kHeadSink);
  in.threshold = context.Input(kThreshold);
  in.row_weight = context.Input(kRowWeight);
  in.attention_mask = context.Input(kAttentionMask);
  const DeltaPlan plan = MakeDeltaPlan(attributes_, in);

  DeltaAttentionOutputs out;
  out.output = context.Output(kOutput, "output", plan.output_shape(), in.query.type);
  out.present_key = context.Output(kPresentKey, "present_key", plan.present_shape(), plan.cache_type).data;
  out.present_value = context.Output(kPresentValue, "present_value", plan.present_shape(), plan.cache_type).data;
  out.statistics =
      context.Output(kStatistics, "statistics", plan.statistics_shape(), ElementType::kInt64).as<int64_t>();
  RunDeltaAttention(attributes_, in, plan, out, kernels_, context.pool());
}

void DeltaAttentionOp::InferShapes(const InferenceContext& context) {
  const InferredTensor query = context.Input(kQuery);
  const InferredTensor past = context.Input(kPastKey);
  const InferredTensor mask = context.Input(kAttentionMask);
  const int64_t heads = context.Int("num_heads", 0);
  const int64_t kv_heads = context.Int("kv_num_heads", 0);
  const bool packed_qkv = context.Input(kKey).type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  const std::string format = context.String("cache_format");
  PackedLayout layout;
  layout.format = format == "int4" ? CacheFormat::kInt4 : CacheFormat::kInt8;
  layout.sinks = context.Int("sinks", 0);
  layout.window = context.Int("delta_window", 0);
  const bool packed_cache = format == FormatName(layout.format);

  InferredTensor output{query.type, true, {{}, {}, {}}};
  InferredTensor present{past.type, true, {{}, {kv_heads > 0 ? kv_heads : -1, ""}, {}, {}}};
  if (query.dims.size() == 3) {
    output.dims = query.dims;
    present.dims[0] = query.dims[0];
    const int64_t all_heads = heads + (packed_qkv ? 2 * kv_heads : 0);
    const int64_t width = query.dims[2].value;
    if (width > 0 && all_heads > 0 && width % all_heads == 0) {
      layout.head_size = width / all_heads;
      present.dims[3] = {packed_cache ? layout.bytes_per_token() : layout.head_size, ""};
      output.dims[2] = {width / all_heads * heads, ""};
    } else if (packed_qkv) {
      output.dims[2] = {};
    }
  }
  const bool has_seqlens = context.Input(kSeqlensK).type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (past.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) {
    present.type = packed_cache          ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                   : format == "float16" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
                                         : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    // Without a past the capacity is the total: the mask's columns, or the new tokens. An int4 cache has its own rule.
    const InferredTensor& total = mask.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED ? query : mask;
    if (!has_seqlens && format != "int4" && total.dims.size() >= 2) present.dims[2] = total.dims[1];
  } else if (past.dims.size() == 4) {
    if (present.dims[3].value < 0) present.dims[3] = past.dims[3];
    // The capacity is the larger of the past's and the total: known where both are.
    const int64_t total = mask.dims.size() == 2 && !has_seqlens ? mask.dims[1].value : -1;
    if (format != "int4" && total >= 0 && past.dims[2].value >= 0) {
      present.dims[2] = {std::max(past.dims[2].value, total), ""};
    }
  }
  context.SetOutput(kOutput, output);
  context.SetOutput(kPresentKey, present);
  context.SetOutput(kPresentValue, present);
}

}  // namespace deltallm::ort
