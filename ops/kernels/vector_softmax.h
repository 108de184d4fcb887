// Exponential, softmax and softcap, and the conversions between half and single precision.
// Part of vector_kernels.h, to be included there only.

/// x = body(x), vector by vector.
template <typename Body>
inline void ForEachVector(float* x, int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Vec::Store(x + i, body(Vec::Load(x + i)));
  if (i < n) Vec::StorePart(x + i, body(Vec::LoadPart(x + i, n - i)), n - i);
}

/// The polynomial of degree 5 through 2^0 with the least relative error from 2^x on [0, 1], 8.2e-8; highest power first.
constexpr float kExp2Polynomial[] = {1.86713007e-3f,  9.017030322e-3f, 5.57999131e-2f,
                                     2.401644502e-1f, 6.931513118e-1f, 1.0f};

/// 2^x for x ≤ 127, relative error below 2e-7; 0 below −126 at the latest; NaN stays NaN.
inline Float Exp2(Float x) {
  const Float r = Vec::Fraction(x);
  Float p = Vec::Set(kExp2Polynomial[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; ++i) p = Vec::MultiplyAdd(p, r, Vec::Set(kExp2Polynomial[i]));
  return Vec::TimesTwoToFloor(p, x);
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
  const Float e = Exp2(Vec::Multiply(bounded, Vec::Set(2.88539008177792681f)));
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
    for (int k = 0; k < 4; ++k) largest[k] = Vec::Larger(Vec::Load(x + i + k * kLanes), largest[k]);
  }
  for (; i + kLanes <= n; i += kLanes) largest[0] = Vec::Larger(Vec::Load(x + i), largest[0]);
  const Float both = Vec::Larger(Vec::Larger(largest[0], largest[1]), Vec::Larger(largest[2], largest[3]));
  float result = Vec::Maximum(both);
  for (; i < n; ++i) {
    if (result < x[i]) result = x[i];
  }
  return result;
}

float Exp2AndSum(float* x, int64_t n, float offset) {
  const Float shift = Vec::Set(offset);
  // Four at a time: the processor looks too few instructions ahead to find enough independent ones by itself.
  Float sums[4];
  for (Float& lanes : sums) lanes = Vec::Zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    Float e[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) e[k] = Exp2(Vec::Subtract(Vec::Load(x + i + k * kLanes), shift));
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      Vec::Store(x + i + k * kLanes, e[k]);
      sums[k] = Vec::Add(sums[k], e[k]);
    }
  }
  Float sum = Vec::Add(Vec::Add(sums[0], sums[1]), Vec::Add(sums[2], sums[3]));
  for (; i + kLanes <= n; i += kLanes) {
    const Float e = Exp2(Vec::Subtract(Vec::Load(x + i), shift));
    Vec::Store(x + i, e);
    sum = Vec::Add(sum, e);
  }
  if (i < n) {
    // The lanes past the end must not count: they are stored away and loaded back as 0.
    Vec::StorePart(x + i, Exp2(Vec::Subtract(Vec::LoadPart(x + i, n - i), shift)), n - i);
    sum = Vec::Add(sum, Vec::LoadPart(x + i, n - i));
  }
  return Vec::Sum(sum);
}

float MultiplyTokensAndSum(float* x, const uint16_t* tags, int64_t n) {
  static_assert(16 % kLanes == 0, "the rows of a tile are whole vectors");
  Float sum = Vec::Zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Float product = Vec::Multiply(Vec::Load(x + i), Vec::LoadTokens(tags + i));
    Vec::Store(x + i, product);
    sum = Vec::Add(sum, product);
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
