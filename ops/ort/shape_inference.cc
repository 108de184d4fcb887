#include "ort/shape_inference.h"

#include <atomic>
#include <memory>

namespace deltallm::ort {
namespace {

bool Succeeded(OrtStatus* status) {
  if (status == nullptr) return true;
  Api().ReleaseStatus(status);
  return false;
}

/// Equal symbols mean equal sizes to the memory planner, so every unknown dimension gets its own.
std::string NewSymbol() {
  static std::atomic<uint64_t> count{0};
  return "deltallm_unknown_" + std::to_string(count++);
}

}  // namespace

InferredTensor InferenceContext::Input(size_t index) const {
  InferredTensor tensor;
  size_t count = 0;
  Check(Api().ShapeInferContext_GetInputCount(context_, &count));
  if (index >= count) return tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  if (!Succeeded(Api().ShapeInferContext_GetInputTypeShape(context_, index, &info)) || info == nullptr) return tensor;
  size_t rank = 0;
  if (!Succeeded(Api().GetTensorElementType(info, &tensor.type)) || !Succeeded(Api().GetDimensionsCount(info, &rank))) {
    return tensor;
  }
  std::vector<int64_t> dims(rank, -1);
  std::vector<const char*> symbols(rank, nullptr);
  Check(Api().GetDimensions(info, dims.data(), rank));
  Check(Api().GetSymbolicDimensions(info, symbols.data(), rank));
  tensor.has_rank = rank > 0;
  for (size_t axis = 0; axis < rank; ++axis) {
    tensor.dims.push_back({dims[axis] < 0 ? -1 : dims[axis], symbols[axis] == nullptr ? "" : symbols[axis]});
  }
  return tensor;
}

int64_t InferenceContext::Int(const char* attribute, int64_t otherwise) const {
  const OrtOpAttr* value = nullptr;
  if (!Succeeded(Api().ShapeInferContext_GetAttribute(context_, attribute, &value)) || value == nullptr) {
    return otherwise;
  }
  int64_t number = 0;
  size_t size = 0;
  return Succeeded(Api().ReadOpAttr(value, ORT_OP_ATTR_INT, &number, sizeof number, &size)) ? number : otherwise;
}

std::string InferenceContext::String(const char* attribute) const {
  const OrtOpAttr* value = nullptr;
  if (!Succeeded(Api().ShapeInferContext_GetAttribute(context_, attribute, &value)) || value == nullptr) return "";
  // Long enough for any value an attribute of these operators may take.
  char text[32] = {};
  size_t size = 0;
  return Succeeded(Api().ReadOpAttr(value, ORT_OP_ATTR_STRING, text, sizeof text - 1, &size)) ? text : "";
}

void InferenceContext::SetOutput(size_t index, const InferredTensor& tensor) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(Api().CreateTensorTypeAndShapeInfo(&info));
  struct Release {
    void operator()(OrtTensorTypeAndShapeInfo* owned) const { Api().ReleaseTensorTypeAndShapeInfo(owned); }
  };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, Release> owner(info);
  std::vector<int64_t> dims;
  std::vector<std::string> names;
  for (const Dimension& dim : tensor.dims) {
    dims.push_back(dim.value);
    names.push_back(dim.value < 0 && dim.symbol.empty() ? NewSymbol() : dim.symbol);
  }
  std::vector<const char*> symbols;
  for (const std::string& name : names) symbols.push_back(name.c_str());
  Check(Api().SetTensorElementType(info, tensor.type));
  Check(Api().SetDimensions(info, dims.data(), dims.size()));
  Check(Api().SetSymbolicDimensions(info, symbols.data(), symbols.size()));
  Check(Api().ShapeInferContext_SetOutputTypeShape(context_, index, info));
}

}  // namespace deltallm::ort
