// Blocks of queries against blocks of keys in float32: prefill_kernels.h.
// Part of vector_kernels.h, to be included there only.
//
//     query tile   [6][D]
//     key panel    [D][kPanelKeys]
//     value block  per panel of up to kPanelVectors vectors of channels: [512 keys][channels of the panel]

constexpr int kTileRows = PrefillArithmetic::kTileRows;
constexpr int kPanelVectors = Vec::kPanelVectors;
constexpr int64_t kPanelKeys = kPanelVectors * kLanes;

inline int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t QueryTileBytes(int64_t head_size) { return RoundUp(kTileRows * head_size * 4, 64); }
int64_t KeyPanelBytes(int64_t head_size) { return kPanelKeys * head_size * 4; }
int64_t ValueBlockBytes(int64_t head_size) { return PrefillArithmetic::kMostColumns * RoundUp(head_size, kLanes) * 4; }

/// Calls body(first vector, vectors) for every panel of channels; panels are equally wide, give or take one vector, so
/// that none leaves the multiply-add units waiting for one another.
template <typename Body>
inline void ForEachChannelPanel(int64_t head_size, const Body& body) {
  const int64_t vectors = (head_size + kLanes - 1) / kLanes;
  const int64_t panels = (vectors + kPanelVectors - 1) / kPanelVectors;
  int64_t first = 0;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t count = (vectors - first + panels - p - 1) / (panels - p);
    body(first, count);
    first += count;
  }
}

void PackQuery(const float* rows, int64_t count, int64_t head_size, void* tile) {
  auto* out = static_cast<float*>(tile);
  for (int64_t i = 0; i < count * head_size; ++i) out[i] = rows[i];
  for (int64_t i = count * head_size; i < kTileRows * head_size; ++i) out[i] = 0.0f;
}

template <typename T>
inline void PackKeysOf(const void* const* rows, int64_t count, int64_t head_size, float* panel) {
  for (int64_t j = 0; j < kPanelKeys; j += kLanes) {
    for (int64_t c = 0; c < head_size; c += kLanes) {
      const int64_t width = Min(kLanes, head_size - c);
      Float tile[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = Vec::Zero();
        if (j + i >= count) continue;
        const T* row = static_cast<const T*>(rows[j + i]) + c;
        tile[i] = width == kLanes ? Vec::Load(row) : Vec::LoadPart(row, width);
      }
      Vec::Transpose(tile);
      for (int i = 0; i < width; ++i) Vec::Store(panel + (c + i) * kPanelKeys + j, tile[i]);
    }
  }
}

void PackKeys(const void* const* rows, ElementType type, int64_t count, int64_t head_size, void* panel) {
  if (type == ElementType::kFloat32) {
    PackKeysOf<float>(rows, count, head_size, static_cast<float*>(panel));
  } else {
    PackKeysOf<uint16_t>(rows, count, head_size, static_cast<float*>(panel));
  }
}

template <typename T>
inline void PackValuesOf(const T* rows, int64_t first_row, int64_t count, int64_t head_size, float* block) {
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    float* out = block + (first * PrefillArithmetic::kMostColumns + first_row * vectors) * kLanes;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t v = 0; v < vectors; ++v, out += kLanes) {
        const int64_t c = (first + v) * kLanes;
        const T* row = rows + j * head_size + c;
        Vec::Store(out, c + kLanes <= head_size ? Vec::Load(row) : Vec::LoadPart(row, head_size - c));
      }
    }
  });
}

void PackValues(const void* rows, ElementType type, int64_t first, int64_t count, int64_t head_size, void* block) {
  if (type == ElementType::kFloat32) {
    PackValuesOf(static_cast<const float*>(rows), first, count, head_size, static_cast<float*>(block));
  } else {
    PackValuesOf(static_cast<const uint16_t*>(rows), first, count, head_size, static_cast<float*>(block));
  }
}

/// kRows rows of a tile with 1 to kPanelVectors vectors of columns.
template <int kRows, int kVectors = 1>
inline void RowsProduct(int64_t vectors, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                        int64_t c_stride, int64_t k, bool accumulate) {
  if constexpr (kVectors < kPanelVectors) {
    if (vectors > kVectors) {
      RowsProduct<kRows, kVectors + 1>(vectors, a, a_stride, b, b_stride, c, c_stride, k, accumulate);
      return;
    }
  }
  MatmulTile<kRows, kVectors>(a, a_stride, b, b_stride, c, c_stride, k, accumulate);
}

inline void TileProduct(int64_t rows, int64_t vectors, const float* a, int64_t a_stride, const float* b,
                        int64_t b_stride, float* c, int64_t c_stride, int64_t k, bool accumulate) {
  if (rows > kTileRows / 2) {
    RowsProduct<kTileRows>(vectors, a, a_stride, b, b_stride, c, c_stride, k, accumulate);
  } else {
    RowsProduct<kTileRows / 2>(vectors, a, a_stride, b, b_stride, c, c_stride, k, accumulate);
  }
}

void TileScores(const void* tile, int64_t rows, const void* panel, int64_t columns, int64_t head_size, float* scores,
                int64_t score_stride) {
  TileProduct(rows, (columns + kLanes - 1) / kLanes, static_cast<const float*>(tile), head_size,
              static_cast<const float*>(panel), kPanelKeys, scores, score_stride, head_size, false);
}

void TileAddValues(const void* weights, int64_t weight_stride, int64_t rows, const void* block, ColumnRange keys,
                   int64_t head_size, float* sum, int64_t sum_stride) {
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    const int64_t width = vectors * kLanes;
    const float* panel =
        static_cast<const float*>(block) + first * kLanes * PrefillArithmetic::kMostColumns + keys.begin * width;
    TileProduct(rows, vectors, static_cast<const float*>(weights) + keys.begin, weight_stride, panel, width,
                sum + first * kLanes, sum_stride, keys.end - keys.begin, true);
  });
}

/// 2^x for x ≤ 127, relative error about 2e-7; 0 below −126.5, where float32 ends; NaN stays NaN.
inline Float Exp2(Float x) {
  const Float n = Vec::Round(x);
  const Float r = Vec::Subtract(x, n);
  // The polynomial of degree 5 through 2^0 with the least relative error on [−1/2, 1/2].
  Float p = Vec::Set(1.326472725e-3f);
  p = Vec::MultiplyAdd(p, r, Vec::Set(9.671512786e-3f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(5.550733744e-2f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(2.402224208e-1f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(6.931469776e-1f));
  p = Vec::MultiplyAdd(p, r, Vec::Set(1.0f));
  // A NaN compares false, so it passes through.
  return Vec::SelectLess(n, Vec::Set(-126.0f), Vec::Zero(), Vec::TimesPowerOfTwo(p, n));
}

/// The weights of one row of a block; returns their sum, those below skip_below included.
template <bool kPlain>
inline float RowWeights(const float* scores, int64_t count, float offset, const float* tokens, float skip_below,
                        float* weights) {
  const Float shift = Vec::Set(offset);
  const Float least = Vec::Set(skip_below);
  Float sum = Vec::Zero();
  const auto add = [&](Float e, Float n) {
    if constexpr (kPlain) {
      sum = Vec::Add(sum, e);
      return e;
    } else {
      const Float weight = Vec::Multiply(e, n);
      sum = Vec::Add(sum, weight);
      return Vec::SelectLess(e, least, Vec::Zero(), weight);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Float n = kPlain || tokens == nullptr ? Vec::Set(1.0f) : Vec::Load(tokens + i);
    Vec::Store(weights + i, add(Exp2(Vec::Subtract(Vec::Load(scores + i), shift)), n));
  }
  if (i < count) {
    const int64_t rest = count - i;
    // The lanes past the end must not count: they are stored away and loaded back as 0.
    Vec::StorePart(weights + i, Exp2(Vec::Subtract(Vec::LoadPart(scores + i, rest), shift)), rest);
    const Float n = kPlain || tokens == nullptr ? Vec::Set(1.0f) : Vec::LoadPart(tokens + i, rest);
    Vec::StorePart(weights + i, add(Vec::LoadPart(weights + i, rest), n), rest);
  }
  return Vec::Sum(sum);
}

/// A bit for every stretch of 64 columns with a weight; NaN is one.
inline uint32_t StretchesWithWeights(const float* weights, ColumnRange columns) {
  uint32_t bits = 0;
  for (int64_t j = columns.begin; j < columns.end; ++j) {
    if (!(weights[j] == 0.0f)) bits |= 1u << (j / 64);
  }
  return bits;
}

uint32_t RowSoftmax(float* scores, ColumnRange seen, ColumnRange written, const float* tokens, float skip_below,
                    SoftmaxRow* row, void* weights) {
  auto* out = static_cast<float*>(weights);
  row->keep = 1.0f;
  for (int64_t j = written.begin; j < seen.begin; ++j) out[j] = 0.0f;
  for (int64_t j = seen.end; j < written.end; ++j) out[j] = 0.0f;
  const int64_t count = seen.end - seen.begin;
  const float top = Maximum(scores + seen.begin, count);
  if (top > row->maximum) {
    // The first keys have nothing to rescale.
    if (row->maximum > -__builtin_inff()) {
      row->keep = Vec::Maximum(Exp2(Vec::Set(row->maximum - top)));
      row->denominator *= row->keep;
    }
    row->maximum = top;
  }
  const float offset = row->maximum == -__builtin_inff() ? 0.0f : row->maximum;
  if (tokens == nullptr && skip_below == 0.0f) {
    row->denominator += RowWeights<true>(scores + seen.begin, count, offset, nullptr, 0.0f, out + seen.begin);
    return ~0u;
  }
  row->denominator +=
      RowWeights<false>(scores + seen.begin, count, offset, tokens == nullptr ? nullptr : tokens + seen.begin,
                        skip_below, out + seen.begin);
  return skip_below == 0.0f ? ~0u : StretchesWithWeights(out, seen);
}

void ConvertWeights(const float* weights, ColumnRange columns, void* converted) {
  auto* out = static_cast<float*>(converted);
  if (out == weights) return;
  for (int64_t j = columns.begin; j < columns.end; ++j) out[j] = weights[j];
}

constexpr PrefillArithmetic MakePrefillFloat32() {
  return {kPanelKeys, 4,          1,          QueryTileBytes, KeyPanelBytes,  ValueBlockBytes, PackQuery,
          PackKeys,   PackValues, TileScores, RowSoftmax,     ConvertWeights, TileAddValues};
}
