// Blocks of queries against blocks of keys in float32: prefill_kernels.h.
// Part of vector_kernels.h, to be included there only.
//
//     query tile   [6][D]
//     key panel    [D][kPanelKeys]
//     value block  per panel of up to kPanelVectors vectors of channels: [512 keys][channels of the panel]

constexpr int kTileRows = PrefillArithmetic::kTileRows;
constexpr int kPanelVectors = Vec::kPanelVectors;
constexpr int64_t kPanelKeys = kPanelVectors * kLanes;

inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
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

void TileScores(const void* tile, int64_t rows, const void* panels, int64_t columns, int64_t head_size, float* scores,
                int64_t score_stride) {
  const auto* keys = static_cast<const float*>(panels);
  for (int64_t j = 0; j < columns; j += kPanelKeys, keys += kPanelKeys * head_size) {
    TileProduct(rows, (Min(columns - j, kPanelKeys) + kLanes - 1) / kLanes, static_cast<const float*>(tile), head_size,
                keys, kPanelKeys, scores + j, score_stride, head_size, false);
  }
}

/// Row 0 of the channels from vector `first` on.
inline const float* ValuePanel(const void* block, int64_t first) {
  return static_cast<const float*>(block) + first * kLanes * PrefillArithmetic::kMostColumns;
}

void TileAddValues(const void* weights, int64_t weight_stride, int64_t rows, const void* block, ColumnRange keys,
                   int64_t head_size, float* sum, int64_t sum_stride) {
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    const int64_t width = vectors * kLanes;
    TileProduct(rows, vectors, static_cast<const float*>(weights) + keys.begin, weight_stride,
                ValuePanel(block, first) + keys.begin * width, width, sum + first * kLanes, sum_stride,
                keys.end - keys.begin, true);
  });
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

constexpr int64_t kChunk = 2 * kLanes;  // keys whose weights are computed at once

/// Lanes [0, kLanes) are 0, the others 1.
struct HalfOnes {
  float lanes[2 * kLanes];
  constexpr HalfOnes() : lanes() {
    for (int64_t i = kLanes; i < 2 * kLanes; ++i) lanes[i] = 1.0f;
  }
};
constexpr HalfOnes kHalfOnes;

/// −∞ for the columns of whole chunks that a row does not see.
inline void HideUnseen(float* scores, ColumnRange chunks, ColumnRange seen) {
  const Float hidden = Vec::Set(-__builtin_inff());
  const Float half = Vec::Set(0.5f);
  for (int64_t j = chunks.begin; j < seen.begin; j += kLanes) {
    const Float after = Vec::Load(kHalfOnes.lanes + kLanes - Min(seen.begin - j, kLanes));
    Vec::Store(scores + j, Vec::SelectLess(after, half, hidden, Vec::Load(scores + j)));
  }
  for (int64_t j = Max(seen.end / kLanes * kLanes, chunks.begin); j < chunks.end; j += kLanes) {
    const Float after = Vec::Load(kHalfOnes.lanes + kLanes - Max(seen.end - j, 0));
    Vec::Store(scores + j, Vec::SelectLess(after, half, Vec::Load(scores + j), hidden));
  }
}

/// Raises a row's maximum to its scores in whole chunks, of which it sees `seen`.
inline void RaiseMaximum(float* scores, ColumnRange chunks, ColumnRange seen, SoftmaxRow* row) {
  HideUnseen(scores, chunks, seen);
  Float even = Vec::Set(-__builtin_inff());
  Float odd = even;
  for (int64_t j = chunks.begin; j < chunks.end; j += kChunk) {
    // A NaN is left out.
    even = Vec::Larger(Vec::Load(scores + j), even);
    odd = Vec::Larger(Vec::Load(scores + j + kLanes), odd);
  }
  const float top = Vec::Maximum(Vec::Larger(even, odd));
  row->keep = 1.0f;
  if (!(top > row->maximum)) return;
  // The first keys have nothing to rescale.
  if (row->maximum > -__builtin_inff()) row->keep = Vec::Maximum(Exp2(Vec::Set(row->maximum - top)));
  row->maximum = top;
}

/// Exp2 for one who has no registers for constants.
inline Float Exp2(Float x, const float* polynomial) {
  const Float r = Vec::Fraction(x);
  Float p = Vec::Set(polynomial[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; ++i) p = Vec::MultiplyAdd(p, r, Vec::Set(polynomial[i]));
  return Vec::TimesTwoToFloor(p, x);
}

/// A row whose scores are taken to weights.
struct WeighedRow {
  float sums[kLanes];  ///< of the weights
  float shift;         ///< what is taken off the scores
};

/// The weights of one chunk of a row, in place of its scores, and what they add to the row's sums.
inline __attribute__((always_inline)) void WeighChunk(float* scores, WeighedRow* row) {
  const float* polynomial = kExp2Polynomial;
  // Constants in registers would push sums out of them: the compiler is not to know that these are constants.
  __asm__("" : "+r"(polynomial));
  Float sum = Vec::Load(row->sums);
#pragma GCC unroll 2
  for (int64_t j = 0; j < kChunk; j += kLanes) {
    const Float weight = Exp2(Vec::Subtract(Vec::Load(scores + j), Vec::Set(row->shift)), polynomial);
    Vec::Store(scores + j, weight);
    sum = Vec::Add(sum, weight);
  }
  Vec::Store(row->sums, sum);
}

/// Takes the scores of whole vectors to weights and adds their products with one panel of values. The units that
/// multiply are busy with the values; half of an exponential needs others, so the two are taken by turns.
template <int kRows, int kVectors>
__attribute__((noinline)) void WeighAndAddOf(float* scores, int64_t score_stride, WeighedRow* weighed,
                                             ColumnRange chunks, ColumnRange keys, const float* panel, float* sum,
                                             int64_t sum_stride) {
  ProductTile<kRows, kVectors> tile;
  tile.Load(sum, sum_stride);
  for (int i = 0; i < kRows; ++i) WeighChunk(scores + i * score_stride + chunks.begin, weighed + i);
  for (int64_t j = chunks.begin; j < chunks.end; j += kChunk) {
    const int64_t next = j + kChunk;
    const int64_t last = Min(next, keys.end);
    for (int i = 0; i < kRows; ++i) {
      if (next < chunks.end) WeighChunk(scores + i * score_stride + next, weighed + i);
      const int64_t begin = Max(j + i * kChunk / kRows, keys.begin);
      const int64_t end = Min(j + (i + 1) * kChunk / kRows, last);
      tile.Add(scores, score_stride, panel, kVectors * kLanes, begin, end);
    }
  }
  tile.Store(sum, sum_stride);
}

template <int kVectors = 1>
inline void WeighAndAdd(int64_t rows, int64_t vectors, float* scores, int64_t score_stride, WeighedRow* weighed,
                        ColumnRange chunks, ColumnRange keys, const float* panel, float* sum, int64_t sum_stride) {
  if constexpr (kVectors < kPanelVectors) {
    if (vectors > kVectors) {
      WeighAndAdd<kVectors + 1>(rows, vectors, scores, score_stride, weighed, chunks, keys, panel, sum, sum_stride);
      return;
    }
  }
  if (rows > kTileRows / 2) {
    WeighAndAddOf<kTileRows, kVectors>(scores, score_stride, weighed, chunks, keys, panel, sum, sum_stride);
  } else {
    WeighAndAddOf<kTileRows / 2, kVectors>(scores, score_stride, weighed, chunks, keys, panel, sum, sum_stride);
  }
}

void TileSoftmaxAndAddValues(float* scores, int64_t score_stride, int64_t rows, const ColumnRange* seen,
                             SoftmaxRow* row, const void* block, int64_t head_size, float* sum, int64_t sum_stride) {
  ColumnRange keys = seen[0];
  for (int64_t r = 1; r < rows; ++r) keys = {Min(keys.begin, seen[r].begin), Max(keys.end, seen[r].end)};
  const ColumnRange chunks{keys.begin / kChunk * kChunk, RoundUp(keys.end, kChunk)};
  WeighedRow weighed[kTileRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    RaiseMaximum(scores + r * score_stride, chunks, seen[r], row + r);
    if (row[r].maximum > -__builtin_inff()) weighed[r].shift = row[r].maximum;
    if (row[r].keep == 1.0f) continue;
    row[r].denominator *= row[r].keep;
    Scale(sum + r * sum_stride, head_size, row[r].keep);
  }
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    const float* panel = ValuePanel(block, first);
    float* sums = sum + first * kLanes;
    if (first == 0) {
      WeighAndAdd(rows, vectors, scores, score_stride, weighed, chunks, keys, panel, sums, sum_stride);
    } else {
      const int64_t width = vectors * kLanes;
      TileProduct(rows, vectors, scores + keys.begin, score_stride, panel + keys.begin * width, width, sums, sum_stride,
                  keys.end - keys.begin, true);
    }
  });
  for (int64_t r = 0; r < rows; ++r) row[r].denominator += Vec::Sum(Vec::Load(weighed[r].sums));
}

constexpr PrefillArithmetic MakePrefillFloat32() {
  return {kPanelKeys, 4,          1,          QueryTileBytes, KeyPanelBytes,  ValueBlockBytes, PackQuery,
          PackKeys,   PackValues, TileScores, RowSoftmax,     ConvertWeights, TileAddValues,   TileSoftmaxAndAddValues};
}
