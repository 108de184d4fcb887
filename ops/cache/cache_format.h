// How a layer keeps keys and values between calls: the attribute cache_format.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace deltallm {

enum class CacheFormat : uint8_t { kFloat32, kFloat16, kInt8, kInt4 };

/// Packed caches hold bytes, docs/cache-format.md; the others numbers, docs/spec.md section 7.
inline bool IsPacked(CacheFormat format) { return format == CacheFormat::kInt8 || format == CacheFormat::kInt4; }

/// The element type of past and present.
inline ElementType CacheType(CacheFormat format) {
  if (format == CacheFormat::kFloat32) return ElementType::kFloat32;
  return format == CacheFormat::kFloat16 ? ElementType::kFloat16 : ElementType::kUint8;
}

/// As cache_format spells it.
inline const char* FormatName(CacheFormat format) {
  switch (format) {
    case CacheFormat::kFloat32:
      return "float32";
    case CacheFormat::kFloat16:
      return "float16";
    case CacheFormat::kInt8:
      return "int8";
    case CacheFormat::kInt4:
      break;
  }
  return "int4";
}

}  // namespace deltallm
