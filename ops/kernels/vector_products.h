// Scores (queries with rows of keys) and sums of values, streamed from the cache.
// Part of vector_kernels.h, to be included there only.
//
// Memory gives its full speed only where the hardware foresees the next line, and it does so by instruction: a load
// that steps through memory evenly is foreseen, one that goes along a row, then jumps to another, is not. A sum of
// values that holds a whole row has one load per vector of it, and each steps evenly from row to row. A tile of scores
// jumps: before it reads, PrefetchInOrder walks over its rows.

template <typename T>
constexpr int64_t kElementsPerLine = 64 / static_cast<int64_t>(sizeof(T));

/// Asks for lines with one instruction that steps from each to the next.
template <typename T>
inline void PrefetchInOrder(const T* data, int64_t count) {
#pragma GCC unroll 1
  for (int64_t i = 0; i < count; i += kElementsPerLine<T>) __builtin_prefetch(data + i, 0, 3);
}

/// With several heads, half rows take longer to compute with than to load: there it pays to ask for bytes far ahead,
/// into the second-level cache (into the first it would halve the speed). With float rows, or one head, memory is the
/// limit, and asking twice only slows it down.
template <typename T>
constexpr bool kPrefetchesAhead = sizeof(T) == 2;
constexpr int64_t kAheadBytes = 8192;

/// Asks for what lies kAheadBytes behind channel c of a row, once per line.
template <typename T>
inline void PrefetchAhead(const T* row, int64_t c) {
  if (c % kElementsPerLine<T> == 0) __builtin_prefetch(reinterpret_cast<const char*>(row + c) + kAheadBytes, 0, 2);
}

/// The lanes of query · row, not yet summed.
template <typename T>
inline Float Products(const float* query, const T* row, int64_t head_size) {
  Float sum = Vec::Zero();
  int64_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) sum = Vec::MultiplyAdd(Vec::Load(query + c), Vec::Load(row + c), sum);
  if (c == head_size) return sum;
  const int64_t rest = head_size - c;
  return Vec::MultiplyAdd(Vec::LoadPart(query + c, rest), Vec::LoadPart(row + c, rest), sum);
}

/// One head: memory decides, and the rows are read one after the other.
template <int kRows, typename T>
inline void ScoreOneHead(const float* query, const T* key, int64_t key_stride, int64_t head_size, float* scores) {
  if constexpr (kRows == 4) {
    const Float a = Products(query, key, head_size);
    const Float b = Products(query, key + key_stride, head_size);
    const Float c = Products(query, key + 2 * key_stride, head_size);
    const Float d = Products(query, key + 3 * key_stride, head_size);
    Vec::StoreSums4(scores, a, b, c, d);
  } else {
    *scores = Vec::Sum(Products(query, key, head_size));
  }
}

/// Several heads share every load of a row.
template <int kHeads, int kRows, typename T>
inline void ScoreTile(const float* query, int64_t query_stride, const T* key, int64_t key_stride, int64_t head_size,
                      float* scores, int64_t score_stride) {
  Float sums[kHeads][kRows];
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j) sums[h][j] = Vec::Zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) {
    Float rows[kRows];
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j) {
      rows[j] = Vec::Load(key + j * key_stride + c);
    }
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const Float q = Vec::Load(query + h * query_stride + c);
#pragma GCC unroll 16
      for (int j = 0; j < kRows; ++j) sums[h][j] = Vec::MultiplyAdd(q, rows[j], sums[h][j]);
    }
  }
  if (c < head_size) {
    const int64_t rest = head_size - c;
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const Float q = Vec::LoadPart(query + h * query_stride + c, rest);
#pragma GCC unroll 16
      for (int j = 0; j < kRows; ++j) {
        sums[h][j] = Vec::MultiplyAdd(q, Vec::LoadPart(key + j * key_stride + c, rest), sums[h][j]);
      }
    }
  }
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) {
    if constexpr (kRows == 4) {
      Vec::StoreSums4(scores + h * score_stride, sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    } else {
      scores[h * score_stride] = Vec::Sum(sums[h][0]);
    }
  }
}

/// Four keys of four vectors each stay in registers for all heads. One head's lanes are summed while the next head
/// multiplies; after a tile of several heads, nothing is left to multiply while all lanes are summed.
template <typename T>
inline void ScoreKeysInRegisters(const float* query, int64_t query_stride, int64_t heads, const T* key,
                                 int64_t key_stride, float* scores, int64_t score_stride) {
  Float keys[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) keys[j][v] = Vec::Load(key + j * key_stride + v * kLanes);
  }
#pragma GCC unroll 4
  for (int64_t h = 0; h < heads; ++h) {
    Float sums[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Float q = Vec::Load(query + h * query_stride + v * kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        sums[j] = v == 0 ? Vec::Multiply(q, keys[j][v]) : Vec::MultiplyAdd(q, keys[j][v], sums[j]);
      }
    }
    Vec::StoreSums4(scores + h * score_stride, sums[0], sums[1], sums[2], sums[3]);
  }
}

template <int kRows, typename T>
inline void ScoreRowsOfAllHeads(const float* query, int64_t query_stride, int64_t heads, const T* key,
                                int64_t key_stride, int64_t head_size, float* scores, int64_t score_stride) {
  if constexpr (kRows == 4 && Vec::kKeysInRegisters) {
    if (heads > 1 && head_size == 4 * kLanes) {
      ScoreKeysInRegisters(query, query_stride, heads, key, key_stride, scores, score_stride);
      return;
    }
  }
  constexpr int kTile = Vec::kScoreHeads;
  int64_t h = 0;
  for (; h + kTile <= heads; h += kTile) {
    ScoreTile<kTile, kRows>(query + h * query_stride, query_stride, key, key_stride, head_size,
                            scores + h * score_stride, score_stride);
  }
  for (; h + 2 <= heads; h += 2) {
    ScoreTile<2, kRows>(query + h * query_stride, query_stride, key, key_stride, head_size, scores + h * score_stride,
                        score_stride);
  }
  for (; h < heads; ++h) {
    ScoreOneHead<kRows>(query + h * query_stride, key, key_stride, head_size, scores + h * score_stride);
  }
}

template <typename T>
void ScoreRows(const float* query, int64_t query_stride, int64_t heads, RowsOf<T> key, int64_t rows, int64_t head_size,
               float* scores, int64_t score_stride) {
  const T* row = key.data;
  int64_t j = 0;
  if (heads == 1) {
    for (; j + 4 <= rows; j += 4, row += 4 * key.stride) {
      PrefetchInOrder(row, 4 * key.stride);
      ScoreOneHead<4>(query, row, key.stride, head_size, scores + j);
    }
  } else {
    for (; j + 4 <= rows; j += 4, row += 4 * key.stride) {
      if constexpr (kPrefetchesAhead<T>) {
        for (int64_t i = 0; i < 4 * key.stride; i += kElementsPerLine<T>) PrefetchAhead(row, i);
      } else {
        PrefetchInOrder(row, 4 * key.stride);
      }
      ScoreRowsOfAllHeads<4>(query, query_stride, heads, row, key.stride, head_size, scores + j, score_stride);
    }
  }
  for (; j < rows; ++j, row += key.stride) {
    ScoreRowsOfAllHeads<1>(query, query_stride, heads, row, key.stride, head_size, scores + j, score_stride);
  }
}

// ------------------------------------------------------------------------------------------------- sums of values

/// kHeads sums over kVectors vectors of channels; with `rest` > 0 the one vector has so many channels.
template <int kHeads, int kVectors, bool kPart, typename T>
inline void SumTile(const float* weights, int64_t weight_stride, const T* value, int64_t value_stride, int64_t rows,
                    int64_t rest, float* sum, int64_t sum_stride) {
  Float sums[kHeads][kVectors];
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const float* p = sum + h * sum_stride + v * kLanes;
      sums[h][v] = kPart ? Vec::LoadPart(p, rest) : Vec::Load(p);
    }
  }
  for (int64_t j = 0; j < rows; ++j) {
    const T* row = value + j * value_stride;
    Float values[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      values[v] = kPart ? Vec::LoadPart(row + v * kLanes, rest) : Vec::Load(row + v * kLanes);
      if constexpr (kHeads > 1 && kPrefetchesAhead<T>) PrefetchAhead(row, v * kLanes);
    }
#pragma GCC unroll 16
    for (int h = 0; h < kHeads; ++h) {
      const Float weight = Vec::Set(weights[h * weight_stride + j]);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[h][v] = Vec::MultiplyAdd(weight, values[v], sums[h][v]);
    }
  }
#pragma GCC unroll 16
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      float* p = sum + h * sum_stride + v * kLanes;
      if constexpr (kPart) {
        Vec::StorePart(p, sums[h][v], rest);
      } else {
        Vec::Store(p, sums[h][v]);
      }
    }
  }
}

/// `vectors` ≤ kVectors vectors of channels.
template <int kHeads, int kVectors, typename T>
inline void SumVectors(int64_t vectors, const float* weights, int64_t weight_stride, const T* value,
                       int64_t value_stride, int64_t rows, float* sum, int64_t sum_stride) {
  if (vectors == kVectors) {
    SumTile<kHeads, kVectors, false>(weights, weight_stride, value, value_stride, rows, 0, sum, sum_stride);
  } else if constexpr (kVectors > 1) {
    SumVectors<kHeads, kVectors - 1>(vectors, weights, weight_stride, value, value_stride, rows, sum, sum_stride);
  }
}

// Where several tiles read the same rows, they take them in stretches: so few bytes stay in the first-level cache, and
// the last tile still computes while the first one of the next stretch waits for memory.
constexpr int64_t kStretchBytes = 4096;

/// The most vectors of channels that kHeads heads sum at once.
template <int kHeads>
constexpr int kTileVectors = kHeads == 1 ? Vec::kOneHeadSums : Vec::kSums / kHeads;

template <int kHeads, typename T>
inline void SumHeads(const float* weights, int64_t weight_stride, const T* value, int64_t value_stride, int64_t rows,
                     int64_t head_size, float* sum, int64_t sum_stride) {
  constexpr int kMost = kTileVectors<kHeads>;
  const int64_t vectors = head_size / kLanes;
  const int64_t tiles = (vectors + kMost - 1) / kMost;
  int64_t c = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t count = vectors * (i + 1) / tiles - vectors * i / tiles;
    SumVectors<kHeads, kMost>(count, weights, weight_stride, value + c, value_stride, rows, sum + c, sum_stride);
    c += count * kLanes;
  }
  if (c < head_size) {
    SumTile<kHeads, 1, true>(weights, weight_stride, value + c, value_stride, rows, head_size - c, sum + c, sum_stride);
  }
}

/// `heads` heads, kHeads at a time; the last ones in one smaller tile.
template <int kHeads, typename T>
inline void SumAllHeads(const float* weights, int64_t weight_stride, int64_t heads, const T* value,
                        int64_t value_stride, int64_t rows, int64_t head_size, float* sum, int64_t sum_stride) {
  int64_t h = 0;
  for (; h + kHeads <= heads; h += kHeads) {
    SumHeads<kHeads>(weights + h * weight_stride, weight_stride, value, value_stride, rows, head_size,
                     sum + h * sum_stride, sum_stride);
  }
  if constexpr (kHeads > 1) {
    SumAllHeads<kHeads - 1>(weights + h * weight_stride, weight_stride, heads - h, value, value_stride, rows, head_size,
                            sum + h * sum_stride, sum_stride);
  }
}

/// All heads, kHeads at a time.
template <int kHeads, typename T>
inline void AddRowsInTiles(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<T> value, int64_t rows,
                           int64_t head_size, float* sum, int64_t sum_stride) {
  const bool whole_rows = head_size <= kTileVectors<kHeads> * kLanes;
  const bool one_tile = heads <= kHeads && whole_rows && head_size % kLanes == 0;
  const int64_t row_bytes = value.stride * static_cast<int64_t>(sizeof(T));
  const int64_t stretch = one_tile ? rows : row_bytes < kStretchBytes ? kStretchBytes / row_bytes : 1;
  constexpr bool kInOrder = kHeads == 1 || !kPrefetchesAhead<T>;
  for (int64_t j = 0; j < rows; j += stretch) {
    const int64_t count = Min(stretch, rows - j);
    const T* first = value.data + j * value.stride;
    if (kInOrder && !whole_rows) PrefetchInOrder(first, count * value.stride);
    SumAllHeads<kHeads>(weights + j, weight_stride, heads, first, value.stride, count, head_size, sum, sum_stride);
  }
}

template <typename T>
void AddRows(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<T> value, int64_t rows,
             int64_t head_size, float* sum, int64_t sum_stride) {
  if (head_size == 0) return;
  // Float rows: as many heads as leave room for whole rows. Half rows: as many as can be, to convert each row rarely.
  const int64_t vectors = (head_size + kLanes - 1) / kLanes;
  const int64_t together = sizeof(T) == 4 ? vectors : 1;
  if (heads == 1 || together > kTileVectors<2>) {
    AddRowsInTiles<1>(weights, weight_stride, heads, value, rows, head_size, sum, sum_stride);
  } else if (together > kTileVectors<Vec::kSumHeads>) {
    AddRowsInTiles<2>(weights, weight_stride, heads, value, rows, head_size, sum, sum_stride);
  } else {
    AddRowsInTiles<Vec::kSumHeads>(weights, weight_stride, heads, value, rows, head_size, sum, sum_stride);
  }
}
