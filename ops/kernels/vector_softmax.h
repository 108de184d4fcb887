// Exponential, softmax and softcap, and the conversions between half and single precision.
// Part of vector_kernels.h, to be included there only.

/// x = body(x), vector by vector.
template <typename Body>
inline void ForEachVector(float* x, int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Vec::Store(x + i, body(Vec::Load(x + i)));
  if (i < n) Vec::StorePart(x + i, body(Vec::LoadPart(x + i, n - i)), n - i);
}

/// e^x for x ≤ 88, relative error about 1e-7; 0 below −87.33, where float32 ends; NaN stays NaN.
inline Float Exp(Float x) {
  // Adding 1.5·2^23 leaves no room for a fraction: the addition itself rounds.
  const Float rounder = Vec::Set(12582912.0f);
  const Float n = Vec::Subtract(Vec::MultiplyAdd(x, Vec::Set(1.44269504088896341f), rounder), rounder);
  // ln 2 in two parts, the first short enough for n·ln2 to be exact.
  Float r = Vec::MultiplyAdd(n, Vec::Set(-0.693359375f), x);
  r = Vec::MultiplyAdd(n, Vec::Set(2.12194440e-4f), r);
  // 1 + r + r²·p(r), p fitted for the least relative error on |r| ≤ ln 2 / 2: 3.1e-9.
  Float p = Vec::Set(1.3814540105e-3f);
  p = Vec::MultiplyAdd(p, r, Vec::Set(8.3687451957e-3f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(4.1668390791e-2f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(1.6666520398e-1f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(4.9999993432e-1f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(1.0f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(1.0f));
  // Far below, and for −∞, n and r are nonsense that the selection hides; a NaN compares false and passes through.
  const Float lowest = Vec::Set(-87.33f);
  return Vec::SelectLess(x, lowest, Vec::Zero(), Vec::TimesPowerOfTwo(p, n));
}

/// tanh: a polynomial near 0, where 1 − 2 / (e^2x + 1) would cancel.
inline Float Tanh(Float x) {
  const Float zero = Vec::Zero();
  const Float magnitude = Vec::SelectLess(x, zero, Vec::Subtract(zero, x), x);
  const Float square = Vec::Multiply(x, x);
  Float p = Vec::Set(-5.70498872745e-3f);
  p = Vec::MultiplyAdd(p, square, Vec::Set(2.06390887954e-2f));
  p = Vec::MultiplyAdd(p, square, Vec::Set(-5.37397155531e-2f));
  p = Vec::MultiplyAdd(p, square, Vec::Set(1.33314422036e-1f));
  p = Vec::MultiplyAdd(p, square, Vec::Set(-3.33332819422e-1f));
  const Float near_zero = Vec::MultiplyAdd(Vec::Multiply(p, square), x, x);
  // tanh(10) is 1 in float32.
  const Float limit = Vec::Set(10.0f);
  const Float bounded = Vec::SelectLess(limit, magnitude, limit, magnitude);
  const Float e = Exp(Vec::Add(bounded, bounded));
  const Float one = Vec::Set(1.0f);
  const Float far = Vec::Subtract(one, Vec::Divide(Vec::Set(2.0f), Vec::Add(e, one)));
  const Float signed_far = Vec::SelectLess(x, zero, Vec::Subtract(zero, far), far);
  return Vec::SelectLess(magnitude, Vec::Set(0.625f), near_zero, signed_far);
}

float Maximum(const float* x, int64_t n) {
  // Four at a time: one would wait for the last comparison each time.
  Float largest[4];
  for (Float& lanes : largest) lanes = Vec::Set(-__builtin_inff());
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Float v = Vec::Load(x + i + k * kLanes);
      largest[k] = Vec::SelectLess(largest[k], v, v, largest[k]);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const Float v = Vec::Load(x + i);
    largest[0] = Vec::SelectLess(largest[0], v, v, largest[0]);
  }
#pragma GCC unroll 4
  for (int k = 1; k < 4; ++k) largest[0] = Vec::SelectLess(largest[0], largest[k], largest[k], largest[0]);
  float result = Vec::Maximum(largest[0]);
  for (; i < n; ++i) {
    if (result < x[i]) result = x[i];
  }
  return result;
}

float ExpAndSum(float* x, int64_t n, float offset) {
  const Float shift = Vec::Set(offset);
  Float sum = Vec::Zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Float e = Exp(Vec::Subtract(Vec::Load(x + i), shift));
    Vec::Store(x + i, e);
    sum = Vec::Add(sum, e);
  }
  if (i < n) {
    // The lanes past the end must not count: they are stored away and loaded back as 0.
    Vec::StorePart(x + i, Exp(Vec::Subtract(Vec::LoadPart(x + i, n - i), shift)), n - i);
    sum = Vec::Add(sum, Vec::LoadPart(x + i, n - i));
  }
  return Vec::Sum(sum);
}

void Softcap(float* x, int64_t n, float cap) {
  const Float c = Vec::Set(cap);
  ForEachVector(x, n, [c](Float v) { return Vec::Multiply(c, Tanh(Vec::Divide(v, c))); });
}

void Scale(float* x, int64_t n, float factor) {
  const Float f = Vec::Set(factor);
  ForEachVector(x, n, [f](Float v) { return Vec::Multiply(v, f); });
}

void HalfToFloatRow(const uint16_t* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Vec::Store(y + i, Vec::Load(x + i));
  if (i < n) Vec::StorePart(y + i, Vec::LoadPart(x + i, n - i), n - i);
}

void FloatToHalfRow(const float* x, int64_t n, uint16_t* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Vec::StoreHalf(y + i, Vec::Load(x + i));
  if (i < n) Vec::StoreHalfPart(y + i, Vec::LoadPart(x + i, n - i), n - i);
}
