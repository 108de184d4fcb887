#include "core/tensor.h"

#include <algorithm>

#include "core/refusal.h"
#include "kernels/half.h"

namespace deltallm {

Shape::Shape(std::initializer_list<int64_t> dims) : Shape(dims.begin(), dims.size()) {}

Shape::Shape(const int64_t* dims, size_t rank) : rank_(static_cast<int>(rank)) {
  if (rank > static_cast<size_t>(kMaxRank)) {
    Refuse("A tensor has ", rank, " dimensions: give at most ", kMaxRank, ".");
  }
  std::copy(dims, dims + rank, dims_.begin());
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
}

std::string Shape::ToString() const {
  std::string text = "[";
  for (int axis = 0; axis < rank_; ++axis) {
    if (axis > 0) text += ", ";
    text += (*this)[axis] < 0 ? std::string("?") : std::to_string((*this)[axis]);
  }
  return text + "]";
}

const char* TypeName(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "float32";
    case ElementType::kFloat16:
      return "float16";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    case ElementType::kBool:
      return "bool";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kOther:
      break;
  }
  return "another type";
}

int64_t ElementSize(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
    case ElementType::kInt32:
      return 4;
    case ElementType::kFloat16:
      return 2;
    case ElementType::kInt64:
      return 8;
    case ElementType::kBool:
    case ElementType::kUint8:
      return 1;
    case ElementType::kOther:
      break;
  }
  return 0;
}

float FloatAt(const void* data, ElementType type, int64_t i) {
  return type == ElementType::kFloat32 ? static_cast<const float*>(data)[i]
                                       : HalfToFloat(static_cast<const uint16_t*>(data)[i]);
}

}  // namespace deltallm
