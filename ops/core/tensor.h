// A tensor as the operators see it: a pointer, an element type and dimensions. Nothing is owned.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/kernels.h"

namespace deltallm {

/// At most kMaxRank dimensions, without allocation. A dimension of −1 is unknown (only before a run).
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  Shape(const int64_t* dims, size_t rank);  ///< Throws Refusal for a rank above kMaxRank.

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return dims_[static_cast<size_t>(axis)]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }
  bool operator==(const Shape& other) const;
  bool operator!=(const Shape& other) const { return !(*this == other); }
  /// "[1, 2, 3]"
  std::string ToString() const;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

struct Tensor {
  const void* data = nullptr;
  ElementType type = ElementType::kOther;
  Shape shape;
  bool present = false;  ///< An absent optional input has no data; so may a present one without elements.

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

struct MutableTensor {
  void* data = nullptr;
  ElementType type = ElementType::kOther;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// "float32" and so on, as numpy spells it.
const char* TypeName(ElementType type);

/// Bytes per element; 0 for kOther.
int64_t ElementSize(ElementType type);

inline bool IsFloat(ElementType type) { return type == ElementType::kFloat32 || type == ElementType::kFloat16; }

/// Element i of a float32 or float16 tensor.
float FloatAt(const void* data, ElementType type, int64_t i);

}  // namespace deltallm
