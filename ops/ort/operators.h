// The operators of the domain ai.deltallm: docs/spec.md section 7.
#pragma once

#include "core/attributes.h"
#include "ort/custom_op.h"

namespace deltallm::ort {

class DeltaAttentionOp {
 public:
  enum InputIndex : size_t {
    kQuery,
    kKey,
    kValue,
    kPastKey,
    kPastValue,
    kSeqlensK,
    kTotalSequenceLength,
    kCosCache,
    kSinCache,
    kPositionIds,
    kAttentionBias,
    kHeadSink,
    kKScale,
    kVScale,
    kQNormWeight,
    kKNormWeight,
    kThreshold,
    kRowWeight,
    kAttentionMask,
  };
  enum OutputIndex : size_t { kOutput, kPresentKey, kPresentValue, kStatistics };

  static constexpr const char* kName = "DeltaAttention";
  static constexpr CacheTypes kCache = CacheTypes::kFloatOrPacked;
  static constexpr Port kInputs[] = {
      {PortType::kActivation, false},  // 0 query
      {PortType::kActivation, true},   // 1 key
      {PortType::kActivation, true},   // 2 value
      {PortType::kCache, true},        // 3 past_key
      {PortType::kCache, true},        // 4 past_value
      {PortType::kInt32, true},        // 5 seqlens_k
      {PortType::kInt32, true},        // 6 total_sequence_length
      {PortType::kActivation, true},   // 7 cos_cache
      {PortType::kActivation, true},   // 8 sin_cache
      {PortType::kInt64, true},        // 9 position_ids
      {PortType::kActivation, true},   // 10 attention_bias
      {PortType::kActivation, true},   // 11 head_sink
      {PortType::kFloat32, true},      // 12 k_scale, refused
      {PortType::kFloat32, true},      // 13 v_scale, refused
      {PortType::kActivation, true},   // 14 q_norm_weight, refused
      {PortType::kActivation, true},   // 15 k_norm_weight, refused
      {PortType::kFloat32, true},      // 16 threshold
      {PortType::kFloat32, true},      // 17 row_weight
      {PortType::kInt64, true},        // 18 attention_mask
  };
  // InferShapes may only speak of outputs that every node has: required ones.
  static constexpr Port kOutputs[] = {
      {PortType::kActivation, false},  // 0 output
      {PortType::kCache, false},       // 1 present_key
      {PortType::kCache, false},       // 2 present_value
      {PortType::kInt64, true},        // 3 statistics
  };

  explicit DeltaAttentionOp(const NodeInfo& node);
  void Run(const RunContext& context) const;
  static void InferShapes(const InferenceContext& context);

 private:
  DeltaAttentionAttributes attributes_;
  const Kernels& kernels_;
};

class DeltaThresholdOp {
 public:
  static constexpr const char* kName = "DeltaThreshold";
  static constexpr CacheTypes kCache = CacheTypes::kNone;
  static constexpr Port kInputs[] = {
      {PortType::kActivation, false},  // 0 key
      {PortType::kActivation, false},  // 1 reference
      {PortType::kFloat32, false},     // 2 threshold
      {PortType::kFloat32, true},      // 3 row_weight
      {PortType::kBool, true},         // 4 transmit
  };
  static constexpr Port kOutputs[] = {
      {PortType::kActivation, false},  // 0 held_key
      {PortType::kActivation, true},   // 1 delta
  };

  explicit DeltaThresholdOp(const NodeInfo& node);
  void Run(const RunContext& context) const;
  static void InferShapes(const InferenceContext& context);

 private:
  HoldRules rules_;
  const Kernels& kernels_;
};

class HybridWindowAttentionOp {
 public:
  static constexpr const char* kName = "HybridWindowAttention";
  static constexpr CacheTypes kCache = CacheTypes::kFloat;
  static constexpr Port kInputs[] = {
      {PortType::kActivation, false},  // 0 query
      {PortType::kCache, false},       // 1 key
      {PortType::kCache, false},       // 2 held_key
      {PortType::kCache, false},       // 3 value
      {PortType::kInt64, false},       // 4 past_length
      {PortType::kInt64, false},       // 5 start
      {PortType::kInt64, false},       // 6 length
      {PortType::kActivation, true},   // 7 attention_bias
      {PortType::kActivation, true},   // 8 head_sink
  };
  static constexpr Port kOutputs[] = {{PortType::kActivation, false}};

  explicit HybridWindowAttentionOp(const NodeInfo& node);
  void Run(const RunContext& context) const;
  static void InferShapes(const InferenceContext& context);

 private:
  AttentionRules rules_;
  const Kernels& kernels_;
};

}  // namespace deltallm::ort
