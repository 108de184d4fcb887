#include "core/checks.h"

#include <cmath>

#include "core/refusal.h"

namespace deltallm {

void CheckShape(const char* name, const Tensor& tensor, const Shape& expected, const char* meaning) {
  bool fits = tensor.shape.rank() == expected.rank();
  for (int axis = 0; fits && axis < expected.rank(); ++axis) {
    fits = expected[axis] < 0 || tensor.shape[axis] == expected[axis];
  }
  if (!fits) {
    Refuse(name, " has shape ", tensor.shape.ToString(), ": give ", expected.ToString(), " (", meaning, ").");
  }
}

void CheckType(const char* name, const Tensor& tensor, ElementType expected) {
  if (tensor.type != expected) {
    Refuse(name, " is of type ", TypeName(tensor.type), ": give ", TypeName(expected), ".");
  }
}

void CheckFloat(const char* name, const Tensor& tensor) {
  if (!IsFloat(tensor.type)) {
    Refuse(name, " is of type ", TypeName(tensor.type), ": give float32 or float16.");
  }
}

int64_t CheckedProduct(std::initializer_list<int64_t> factors) {
  constexpr int64_t kLimit = int64_t{1} << 62;
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (factor < 0 || (factor > 0 && product > kLimit / factor)) {
      Refuse("The sizes of the inputs multiply to more than memory can hold: give smaller ones.");
    }
    product *= factor;
  }
  return product;
}

void CheckThreshold(const Tensor& threshold, int64_t kv_heads, int64_t head_size, bool row_granularity) {
  if (!threshold.present) return;
  CheckType("threshold", threshold, ElementType::kFloat32);
  const Shape per_head{kv_heads};
  const Shape per_channel{kv_heads, head_size};
  if (threshold.shape == per_channel && row_granularity) {
    Refuse("threshold has shape ", threshold.shape.ToString(),
           ": granularity \"row\" takes one number per KV head, give ", per_head.ToString(), ".");
  }
  if (threshold.shape != per_head && threshold.shape != per_channel) {
    Refuse("threshold has shape ", threshold.shape.ToString(), ": give ", per_head.ToString(), " or ",
           per_channel.ToString(), " (KV heads, head size).");
  }
  const int64_t count = threshold.shape == per_head ? kv_heads : kv_heads * head_size;
  const float* values = threshold.as<float>();
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(values[i]) || values[i] < 0.0f) {
      Refuse("threshold holds ", values[i], " at index ", i, ": give finite numbers of at least 0.");
    }
  }
}

void CheckRowWeight(const Tensor& row_weight, int64_t kv_heads, int64_t head_size) {
  if (!row_weight.present) return;
  CheckType("row_weight", row_weight, ElementType::kFloat32);
  CheckShape("row_weight", row_weight, Shape{kv_heads, head_size}, "KV heads, head size");
}

void CheckAttentionBias(const Tensor& bias, const Geometry& geometry, int64_t columns) {
  if (!bias.present) return;
  CheckFloat("attention_bias", bias);
  const Shape& shape = bias.shape;
  const bool fits = shape.rank() == 4 && (shape[0] == 1 || shape[0] == geometry.batch) &&
                    (shape[1] == 1 || shape[1] == geometry.query_heads) && shape[2] == geometry.new_tokens &&
                    shape[3] == columns;
  if (!fits) {
    Refuse("attention_bias has shape ", shape.ToString(), ": give [", geometry.batch, " or 1, ", geometry.query_heads,
           " or 1, ", geometry.new_tokens, ", ", columns, "] (batch, heads, new tokens, total tokens).");
  }
}

void CheckHeadSink(const Tensor& head_sink, int64_t query_heads) {
  if (!head_sink.present) return;
  CheckFloat("head_sink", head_sink);
  CheckShape("head_sink", head_sink, Shape{query_heads}, "query heads");
}

}  // namespace deltallm
