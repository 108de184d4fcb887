// Vectors of kLanes numbers for packed_coding_rows.h and packed_coding_blocks.h, in the compiler's own vector types:
// one source for every instruction set, every operation exactly the one written. Each source file includes this into
// its anonymous namespace, so that nothing is shared between files compiled for different processors, and then defines
// what compilers make poor code of: LargestLane of Ints, and LoadSigned, LoadUnsigned and StoreBytes between Ints and
// kLanes bytes.

#ifndef DELTALLM_PACKED_CODING_INSIDE
#error "Include this file from a packed_coding source, inside its anonymous namespace."
#endif

using Floats = float __attribute__((vector_size(4 * kLanes)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes)));
using FourFloats = float __attribute__((vector_size(16)));

template <typename To, typename From>
inline To BitsAs(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <typename Vector>
inline Vector Load(const void* p) {
  Vector x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <typename Vector>
inline void Store(void* p, const Vector& x) {
  __builtin_memcpy(p, &x, sizeof x);
}

/// The first n < lanes of a vector, zeros behind them.
template <typename Vector>
inline Vector LoadFirst(const void* p, int64_t n) {
  Vector x = {};
  __builtin_memcpy(&x, p, static_cast<size_t>(n) * sizeof x[0]);
  return x;
}
template <typename Vector>
inline void StoreFirst(void* p, const Vector& x, int64_t n) {
  __builtin_memcpy(p, &x, static_cast<size_t>(n) * sizeof x[0]);
}

inline FourFloats FourLanes(const Floats& x, int i) {
  return Load<FourFloats>(reinterpret_cast<const char*>(&x) + 16 * i);
}

constexpr uint16_t kHalfNaN = 0x7e00;
constexpr uint16_t kHalfInfinity = 0x7c00;
constexpr uint16_t kSmallestNormalHalf = 0x0400;
constexpr int32_t kLargestFinite = 0x7f7fffff;
/// Added to a number of at most 22 bits, it leaves that number, rounded to nearest even, in the low bits.
constexpr float kRoundingOffset = 12582912.0f;
constexpr int32_t kRoundingBits = 0x4B400000;  // its lowest byte is 0

inline int64_t PaddedSize(int64_t head_size) { return (head_size + 3) / 4 * 4; }
inline bool IsFiniteHalf(uint16_t half) { return (half & kHalfInfinity) != kHalfInfinity; }

inline uint16_t LoadHalf(const uint8_t* halves, int64_t i) { return Load<uint16_t>(halves + 2 * i); }
