// Shape inference through the C API. The C++ wrapper marks symbolic dimensions with −2, which ONNX Runtime 1.22 and
// newer reject without a word; here every unknown dimension is −1 and has a symbol: without one, the −1 itself would
// become the dimension.
#pragma once

#include <string>
#include <vector>

#include "core/tensor.h"
#include "ort/api.h"

namespace deltallm::ort {

/// A dimension: a known value, or −1 with the symbol it goes by ("" if it has none).
struct Dimension {
  int64_t value = -1;
  std::string symbol;
};

struct InferredTensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  bool has_rank = false;
  std::vector<Dimension> dims;
};

class InferenceContext {
 public:
  explicit InferenceContext(OrtShapeInferContext* context) : context_(context) {}

  /// Empty for an absent input.
  InferredTensor Input(size_t index) const;
  int64_t Int(const char* attribute, int64_t otherwise) const;
  std::string String(const char* attribute) const;
  /// For required outputs only: ONNX Runtime neither says how many outputs the node has nor checks the index, so that
  /// it writes past the end of its array for one the node leaves out.
  void SetOutput(size_t index, const InferredTensor& tensor) const;

 private:
  OrtShapeInferContext* context_;
};

}  // namespace deltallm::ort
