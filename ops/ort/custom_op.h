// An operator as ONNX Runtime's table of C callbacks.
#pragma once

#include <climits>
#include <memory>

#include "ort/kernel_io.h"
#include "ort/shape_inference.h"

namespace deltallm::ort {

/// An operator is registered once per combination of its activations' and its cache's element type: up to 1.18, ONNX
/// Runtime accepts no more than one input of an open type.
enum class PortType : uint8_t { kActivation, kCache, kFloat32, kInt32, kInt64, kBool };

struct Port {
  PortType type;
  bool optional;
};

/// What an operator's cache ports may be.
enum class CacheTypes : uint8_t { kNone, kFloat, kFloatOrPacked };

/// Op gives: kName, kCache, kInputs, kOutputs (arrays of Port), InferShapes(const InferenceContext&), and is itself the
/// kernel: constructed from NodeInfo, with a const Run(RunContext) that may be called from several threads at once.
template <typename Op>
class CustomOp : public OrtCustomOp {
 public:
  /// `api_version` is the negotiated one: an older runtime refuses a newer one.
  CustomOp(uint32_t api_version, ONNXTensorElementDataType activation, ONNXTensorElementDataType cache)
      : OrtCustomOp{}, activation_(activation), cache_(cache) {
    version = api_version;
    GetName = [](const OrtCustomOp*) { return Op::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return Self(op).TypeOf(Op::kInputs[index]); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Characteristic(Op::kInputs[index]); };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kOutputs); };
    GetOutputType = [](const OrtCustomOp* op, size_t index) { return Self(op).TypeOf(Op::kOutputs[index]); };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) { return Characteristic(Op::kOutputs[index]); };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return Guarded(Api(), [&] { *kernel = Create(NodeInfo(info)).release(); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return Guarded(Api(), [&] { static_cast<const Op*>(kernel)->Run(RunContext(context)); });
    };
    if (ShapeInferenceIsSafe()) {
      InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
        return Guarded(Api(), [&] { Op::InferShapes(InferenceContext(context)); });
      };
    }
    // GetMayInplace and GetAliasMap stay null: an alias on an intermediate value overwrites a caller's array.
  }

 private:
  static const CustomOp& Self(const OrtCustomOp* op) { return *static_cast<const CustomOp*>(op); }

  ONNXTensorElementDataType TypeOf(const Port& port) const {
    switch (port.type) {
      case PortType::kActivation:
        return activation_;
      case PortType::kCache:
        return cache_;
      case PortType::kFloat32:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
      case PortType::kInt32:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
      case PortType::kInt64:
        return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
      case PortType::kBool:
        break;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  }

  static OrtCustomOpInputOutputCharacteristic Characteristic(const Port& port) {
    return port.optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
  }

  static std::unique_ptr<Op> Create(const NodeInfo& node) {
    try {
      return std::make_unique<Op>(node);
    } catch (const Refusal& refusal) {
      // At session creation the runtime does not say which node it is about.
      Refuse(Op::kName, " node '", node.NodeName(), "': ", refusal.what());
    }
  }

  ONNXTensorElementDataType activation_;
  ONNXTensorElementDataType cache_;
};

/// An operator in all its type combinations.
template <typename Op>
class CustomOpFamily {
 public:
  explicit CustomOpFamily(uint32_t api_version)
      : variants_{{api_version, kSingle, kSingle}, {api_version, kHalf, kHalf},   {api_version, kSingle, kHalf},
                  {api_version, kHalf, kSingle},   {api_version, kSingle, kByte}, {api_version, kHalf, kByte}} {}

  void AddTo(OrtCustomOpDomain* domain) const {
    // Without a cache, all others would be the first two again.
    const size_t count = Op::kCache == CacheTypes::kFloatOrPacked ? 6 : Op::kCache == CacheTypes::kFloat ? 4 : 2;
    for (size_t i = 0; i < count; ++i) Check(Api().CustomOpDomain_Add(domain, &variants_[i]));
  }

 private:
  static constexpr ONNXTensorElementDataType kSingle = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static constexpr ONNXTensorElementDataType kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  static constexpr ONNXTensorElementDataType kByte = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  CustomOp<Op> variants_[6];
};

}  // namespace deltallm::ort
