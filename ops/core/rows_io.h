// Reading query and key rows out of the operator's inputs and writing output rows, whatever their type and layout.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/tensor.h"
#include "kernels/kernels.h"
#include "kernels/rotary.h"

namespace deltallm {

/// Rotary tables and the table row of every new token.
struct Rotary {
  const char* cos = nullptr;  ///< [max positions, half]
  const char* sin = nullptr;
  ElementType type = ElementType::kFloat32;
  int64_t half = 0;  ///< 0: no rotation
  bool interleaved = false;
  std::vector<int64_t> positions;  ///< [B·S]
};

/// Where row (batch, token, head) of a tensor lies, in elements.
struct RowLayout {
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
  int64_t Offset(int64_t b, int64_t s, int64_t h) const {
    return b * batch_stride + s * token_stride + h * head_stride;
  }
};

struct InputRows {
  const char* data = nullptr;
  ElementType type = ElementType::kFloat32;
  RowLayout layout{};
  int64_t head_size = 0;
  int64_t new_tokens = 0;
  const Rotary* rotary = nullptr;  ///< null: as they are

  /// Row (b, s, h) as float32, rotated, into `out`; `buffer` holds 2·head_size floats.
  void Read(const Kernels& kernels, int64_t b, int64_t s, int64_t h, float* buffer, float* out) const {
    const char* row = data + layout.Offset(b, s, h) * ElementSize(type);
    if (type == ElementType::kFloat16) {
      kernels.half_to_float(reinterpret_cast<const uint16_t*>(row), head_size, out);
    } else {
      std::memcpy(out, row, static_cast<size_t>(head_size) * sizeof(float));
    }
    if (rotary == nullptr || rotary->half == 0) return;
    const int64_t half = rotary->half;
    const int64_t first = rotary->positions[static_cast<size_t>(b * new_tokens + s)] * half;
    const char* cos = rotary->cos + first * ElementSize(rotary->type);
    const char* sin = rotary->sin + first * ElementSize(rotary->type);
    if (rotary->type == ElementType::kFloat16) {
      kernels.half_to_float(reinterpret_cast<const uint16_t*>(cos), half, buffer);
      kernels.half_to_float(reinterpret_cast<const uint16_t*>(sin), half, buffer + half);
      RotateRow(out, head_size, buffer, buffer + half, half, rotary->interleaved, out);
    } else {
      RotateRow(out, head_size, reinterpret_cast<const float*>(cos), reinterpret_cast<const float*>(sin), half,
                rotary->interleaved, out);
    }
  }
};

struct OutputRows {
  char* data = nullptr;
  ElementType type = ElementType::kFloat32;
  RowLayout layout{};
  int64_t head_size = 0;

  void Write(const Kernels& kernels, int64_t b, int64_t s, int64_t h, const float* values) const {
    char* row = data + layout.Offset(b, s, h) * ElementSize(type);
    if (type == ElementType::kFloat16) {
      kernels.float_to_half(values, head_size, reinterpret_cast<uint16_t*>(row));
    } else {
      std::memcpy(row, values, static_cast<size_t>(head_size) * sizeof(float));
    }
  }
};

}  // namespace deltallm
