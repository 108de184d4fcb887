// What a kernel reads of its node and of a run, in the operators' own types.
#pragma once

#include <cstdint>
#include <string>

#include "core/attributes.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "ort/api.h"

namespace deltallm::ort {

ElementType FromOnnx(ONNXTensorElementDataType type);

/// A node when its kernel is created.
class NodeInfo {
 public:
  explicit NodeInfo(const OrtKernelInfo* info) : info_(info) {}

  /// Attribute values; an attribute of another type is refused, an absent one gives the default.
  int64_t Int(const char* name, int64_t otherwise) const;
  float Float(const char* name, float otherwise) const;
  std::string String(const char* name, const std::string& otherwise) const;
  bool Flag(const char* name) const;
  bool Has(const char* name) const;

  bool HasInput(size_t index) const;
  /// kOther where the graph does not say.
  ElementType InputType(size_t index) const;
  std::string NodeName() const;

 private:
  const OrtKernelInfo* info_;
};

/// scale, softcap, local_window_size, delta_window, sinks, prefill, v_skip; checked.
AttentionRules ReadAttentionRules(const NodeInfo& node);
/// granularity, row_rule; `with_refresh` also refresh; checked.
HoldRules ReadHoldRules(const NodeInfo& node, bool with_refresh);

/// One run of a kernel.
class RunContext {
 public:
  explicit RunContext(OrtKernelContext* context);

  /// An absent optional input gives a tensor that is not present.
  Tensor Input(size_t index) const;
  /// Allocates the output. `type` must be what the graph was inferred to have. Null data for an absent one.
  MutableTensor Output(size_t index, const char* name, const Shape& shape, ElementType type) const;
  /// The session's own thread pool.
  Parallel pool() const;

 private:
  OrtKernelContext* context_;
  size_t inputs_ = 0;
  size_t outputs_ = 0;
};

}  // namespace deltallm::ort
