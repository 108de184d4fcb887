#include "ort/kernel_io.h"

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#ifdef _WIN32
#include <thread>
#else
#include <unistd.h>
#endif

namespace deltallm::ort {
namespace {

/// Asked of the system where that is one call: <thread> brings symbols of newer C libraries than we need.
int64_t Processors() {
#ifdef _WIN32
  return std::thread::hardware_concurrency();
#else
  return sysconf(_SC_NPROCESSORS_ONLN);
#endif
}

/// True if the call succeeded; its status is released either way.
bool Succeeded(OrtStatus* status) {
  if (status == nullptr) return true;
  Api().ReleaseStatus(status);
  return false;
}

struct ReleaseShapeInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const { Api().ReleaseTensorTypeAndShapeInfo(info); }
};

struct ReleaseType {
  void operator()(OrtTypeInfo* info) const { Api().ReleaseTypeInfo(info); }
};

struct TypeAndShape {
  ElementType type;
  Shape shape;
};

TypeAndShape Describe(const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  Check(Api().GetTensorTypeAndShape(value, &raw));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseShapeInfo> info(raw);
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Check(Api().GetTensorElementType(raw, &type));
  size_t rank = 0;
  Check(Api().GetDimensionsCount(raw, &rank));
  if (rank > static_cast<size_t>(Shape::kMaxRank)) {
    Refuse("An input has ", rank, " dimensions: give at most ", Shape::kMaxRank, ".");
  }
  std::array<int64_t, Shape::kMaxRank> dims{};
  Check(Api().GetDimensions(raw, dims.data(), rank));
  return {FromOnnx(type), Shape(dims.data(), rank)};
}

/// Input and output names are read into a caller's buffer, first for the size.
template <typename Get>
std::string ReadText(const Get& get) {
  size_t size = 0;
  if (!Succeeded(get(nullptr, &size)) || size == 0) return "";
  std::vector<char> text(size);
  if (!Succeeded(get(text.data(), &size))) return "";
  return std::string(text.data());
}

}  // namespace

ElementType FromOnnx(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return ElementType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return ElementType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return ElementType::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return ElementType::kInt64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return ElementType::kBool;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return ElementType::kUint8;
    default:
      return ElementType::kOther;
  }
}

bool NodeInfo::Has(const char* name) const {
  int64_t integer = 0;
  float real = 0.0f;
  size_t size = 0;
  return Succeeded(Api().KernelInfoGetAttribute_int64(info_, name, &integer)) ||
         Succeeded(Api().KernelInfoGetAttribute_float(info_, name, &real)) ||
         Succeeded(Api().KernelInfoGetAttribute_string(info_, name, nullptr, &size)) ||
         Succeeded(Api().KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size)) ||
         Succeeded(Api().KernelInfoGetAttributeArray_float(info_, name, nullptr, &size));
}

int64_t NodeInfo::Int(const char* name, int64_t otherwise) const {
  int64_t value = 0;
  if (Succeeded(Api().KernelInfoGetAttribute_int64(info_, name, &value))) return value;
  if (Has(name)) Refuse("Attribute ", name, " is not an integer: give an integer.");
  return otherwise;
}

float NodeInfo::Float(const char* name, float otherwise) const {
  float value = 0.0f;
  if (Succeeded(Api().KernelInfoGetAttribute_float(info_, name, &value))) return value;
  if (Has(name)) Refuse("Attribute ", name, " is not a float: give a float.");
  return otherwise;
}

std::string NodeInfo::String(const char* name, const std::string& otherwise) const {
  size_t size = 0;
  if (!Succeeded(Api().KernelInfoGetAttribute_string(info_, name, nullptr, &size))) {
    if (Has(name)) Refuse("Attribute ", name, " is not a string: give a string.");
    return otherwise;
  }
  std::vector<char> text(size);
  Check(Api().KernelInfoGetAttribute_string(info_, name, text.data(), &size));
  return std::string(text.data());
}

bool NodeInfo::Flag(const char* name) const {
  const int64_t value = Int(name, 0);
  if (value != 0 && value != 1) Refuse("Attribute ", name, " is ", value, ": give 0 or 1.");
  return value == 1;
}

bool NodeInfo::HasInput(size_t index) const {
  size_t count = 0;
  Check(Api().KernelInfo_GetInputCount(info_, &count));
  if (index >= count) return false;
  return !ReadText([&](char* text, size_t* size) {
            return Api().KernelInfo_GetInputName(info_, index, text, size);
          }).empty();
}

ElementType NodeInfo::InputType(size_t index) const {
  OrtTypeInfo* raw = nullptr;
  if (!HasInput(index) || !Succeeded(Api().KernelInfo_GetInputTypeInfo(info_, index, &raw)) || raw == nullptr) {
    return ElementType::kOther;
  }
  const std::unique_ptr<OrtTypeInfo, ReleaseType> owner(raw);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  if (!Succeeded(Api().CastTypeInfoToTensorInfo(raw, &tensor)) || tensor == nullptr) return ElementType::kOther;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (!Succeeded(Api().GetTensorElementType(tensor, &type))) return ElementType::kOther;
  return FromOnnx(type);
}

std::string NodeInfo::NodeName() const {
  return ReadText([&](char* text, size_t* size) { return Api().KernelInfo_GetNodeName(info_, text, size); });
}

AttentionRules ReadAttentionRules(const NodeInfo& node) {
  AttentionRules rules;
  rules.scale = node.Float("scale", 0.0f);
  rules.softcap = node.Float("softcap", 0.0f);
  rules.local_window = node.Int("local_window_size", -1);
  rules.delta_window = node.Int("delta_window", 0);
  rules.sinks = node.Int("sinks", 0);
  rules.exact_prefill = ParsePrefill(node.String("prefill", "delta"));
  rules.prefill_compute = ParsePrefillCompute(node.String("prefill_compute", "float32"));
  rules.v_skip = node.Float("v_skip", 0.0f);
  rules.Check();
  return rules;
}

HoldRules ReadHoldRules(const NodeInfo& node, bool with_refresh) {
  HoldRules rules;
  rules.row_granularity = ParseGranularity(node.String("granularity", "element"));
  rules.row_rule = ParseRowRule(node.String("row_rule", "relative"));
  if (with_refresh) rules.refresh = node.Int("refresh", 0);
  rules.Check();
  return rules;
}

RunContext::RunContext(OrtKernelContext* context) : context_(context) {
  Check(Api().KernelContext_GetInputCount(context, &inputs_));
  Check(Api().KernelContext_GetOutputCount(context, &outputs_));
}

Tensor RunContext::Input(size_t index) const {
  Tensor tensor;
  if (index >= inputs_) return tensor;
  const OrtValue* value = nullptr;
  Check(Api().KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) return tensor;
  const TypeAndShape described = Describe(value);
  void* data = nullptr;
  // The API has one accessor for both; inputs are only read.
  Check(Api().GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  tensor.type = described.type;
  tensor.shape = described.shape;
  tensor.present = true;
  return tensor;
}

MutableTensor RunContext::Output(size_t index, const char* name, const Shape& shape, ElementType type) const {
  MutableTensor tensor;
  if (index >= outputs_) return tensor;
  OrtValue* value = nullptr;
  Check(Api().KernelContext_GetOutput(context_, index, shape.begin(), static_cast<size_t>(shape.rank()), &value));
  if (value == nullptr) return tensor;
  tensor.type = Describe(value).type;
  if (tensor.type != type) {
    Refuse("The graph declares ", name, " as ", TypeName(tensor.type), ", but it is ", TypeName(type),
           ": correct the graph's output type, or cache_format.");
  }
  Check(Api().GetTensorMutableData(value, &tensor.data));
  return tensor;
}

Parallel RunContext::pool() const {
  // A kernel cannot ask for the session's number of threads; the machine's is the most it can be. Counting the
  // processors reads a file of the operating system: once is enough.
  static const int64_t threads = std::max<int64_t>(Processors(), 1);
  return {[](void* context, void (*task)(void*, size_t), size_t count, void* data) {
            Check(Api().KernelContext_ParallelFor(static_cast<OrtKernelContext*>(context), task, count, 0, data));
          },
          context_, threads};
}

}  // namespace deltallm::ort
