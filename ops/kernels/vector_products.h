// Scores (queries with rows of keys) and sums of values, streamed from the cache.
// Part of vector_kernels.h, to be included there only.

// Hardware prefetching stops at pages, and the four rows of a score tile confuse it: asking 8 KiB ahead, into the
// second-level cache, makes up for both. Into the first level it would halve the speed. Where rows are read strictly in
// order and there is little to compute, asking costs more than it gives.
constexpr int64_t kPrefetchBytes = 8192;

template <typename T>
inline void PrefetchAhead(const T* row, int64_t c) {
  if (c % static_cast<int64_t>(64 / sizeof(T)) == 0) {
    __builtin_prefetch(reinterpret_cast<const char*>(row + c) + kPrefetchBytes, 0, 2);
  }
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

/// One head: memory decides, so the rows are read one after the other.
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
template <int kHeads, int kRows, bool kPrefetch, typename T>
inline void ScoreTile(const float* query, int64_t query_stride, const T* key, int64_t key_stride, int64_t head_size,
                      float* scores, int64_t score_stride) {
  Float sums[kHeads][kRows];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) sums[h][j] = Vec::Zero();
  }
  int64_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) {
    Float rows[kRows];
#pragma GCC unroll 8
    for (int j = 0; j < kRows; ++j) {
      rows[j] = Vec::Load(key + j * key_stride + c);
      if constexpr (kPrefetch) PrefetchAhead(key + j * key_stride, c);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Float q = Vec::Load(query + h * query_stride + c);
#pragma GCC unroll 8
      for (int j = 0; j < kRows; ++j) sums[h][j] = Vec::MultiplyAdd(q, rows[j], sums[h][j]);
    }
  }
  if (c < head_size) {
    const int64_t rest = head_size - c;
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Float q = Vec::LoadPart(query + h * query_stride + c, rest);
#pragma GCC unroll 8
      for (int j = 0; j < kRows; ++j) {
        sums[h][j] = Vec::MultiplyAdd(q, Vec::LoadPart(key + j * key_stride + c, rest), sums[h][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    if constexpr (kRows == 4) {
      Vec::StoreSums4(scores + h * score_stride, sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    } else {
      scores[h * score_stride] = Vec::Sum(sums[h][0]);
    }
  }
}

template <int kRows, typename T>
inline void ScoreRowsOfAllHeads(const float* query, int64_t query_stride, int64_t heads, const T* key,
                                int64_t key_stride, int64_t head_size, float* scores, int64_t score_stride) {
  constexpr int kTile = Vec::kScoreHeads;
  int64_t h = 0;
  if (heads >= kTile) {
    ScoreTile<kTile, kRows, true>(query, query_stride, key, key_stride, head_size, scores, score_stride);
    h = kTile;
  }
  for (; h + kTile <= heads; h += kTile) {
    ScoreTile<kTile, kRows, false>(query + h * query_stride, query_stride, key, key_stride, head_size,
                                   scores + h * score_stride, score_stride);
  }
  for (; h + 2 <= heads; h += 2) {
    ScoreTile<2, kRows, true>(query + h * query_stride, query_stride, key, key_stride, head_size,
                              scores + h * score_stride, score_stride);
  }
  for (; h < heads; ++h) {
    ScoreOneHead<kRows>(query + h * query_stride, key, key_stride, head_size, scores + h * score_stride);
  }
}

template <typename T>
void ScoreRows(const float* query, int64_t query_stride, int64_t heads, RowsOf<T> key, int64_t rows, int64_t head_size,
               float* scores, int64_t score_stride) {
  int64_t j = 0;
  for (; j + 4 <= rows; j += 4) {
    ScoreRowsOfAllHeads<4>(query, query_stride, heads, key.data + j * key.stride, key.stride, head_size, scores + j,
                           score_stride);
  }
  for (; j < rows; ++j) {
    ScoreRowsOfAllHeads<1>(query, query_stride, heads, key.data + j * key.stride, key.stride, head_size, scores + j,
                           score_stride);
  }
}

// ------------------------------------------------------------------------------------------------- sums of values

/// kHeads sums over kVectors vectors of channels; with `rest` > 0 the one vector has so many channels.
template <int kHeads, int kVectors, bool kPart, typename T>
inline void SumTile(const float* weights, int64_t weight_stride, const T* value, int64_t value_stride, int64_t rows,
                    int64_t rest, float* sum, int64_t sum_stride) {
  Float sums[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const float* p = sum + h * sum_stride + v * kLanes;
      sums[h][v] = kPart ? Vec::LoadPart(p, rest) : Vec::Load(p);
    }
  }
  for (int64_t j = 0; j < rows; ++j) {
    const T* row = value + j * value_stride;
    Float values[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      values[v] = kPart ? Vec::LoadPart(row + v * kLanes, rest) : Vec::Load(row + v * kLanes);
      // Half rows leave time to compute in: there it pays.
      if constexpr (kHeads > 1 && sizeof(T) == 2) PrefetchAhead(row, v * kLanes);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Float weight = Vec::Set(weights[h * weight_stride + j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[h][v] = Vec::MultiplyAdd(weight, values[v], sums[h][v]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
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

/// Channels from c on, in tiles of kVectors vectors as long as they fit, then of half as many; returns the channel that
/// is left.
template <int kHeads, int kVectors, typename T>
inline int64_t SumWholeVectors(const float* weights, int64_t weight_stride, const T* value, int64_t value_stride,
                               int64_t rows, int64_t head_size, int64_t c, float* sum, int64_t sum_stride) {
  for (; c + kVectors * kLanes <= head_size; c += kVectors * kLanes) {
    SumTile<kHeads, kVectors, false>(weights, weight_stride, value + c, value_stride, rows, 0, sum + c, sum_stride);
  }
  if constexpr (kVectors == 1) {
    return c;
  } else {
    return SumWholeVectors<kHeads, kVectors / 2>(weights, weight_stride, value, value_stride, rows, head_size, c, sum,
                                                 sum_stride);
  }
}

template <int kHeads, typename T>
inline void SumHeads(const float* weights, int64_t weight_stride, const T* value, int64_t value_stride, int64_t rows,
                     int64_t head_size, float* sum, int64_t sum_stride) {
  constexpr int kMost = Vec::kSums / kHeads;
  const int64_t c = SumWholeVectors<kHeads, (kMost < 8 ? kMost : 8)>(weights, weight_stride, value, value_stride, rows,
                                                                     head_size, 0, sum, sum_stride);
  if (c < head_size) {
    SumTile<kHeads, 1, true>(weights, weight_stride, value + c, value_stride, rows, head_size - c, sum + c, sum_stride);
  }
}

// A tile narrower than a row steps over memory, which runs at a third of its speed: rows are taken in stretches that
// the first-level cache holds until their last tile.
constexpr int64_t kStretch = 32;

template <typename T>
void AddRows(const float* weights, int64_t weight_stride, int64_t heads, RowsOf<T> value, int64_t rows,
             int64_t head_size, float* sum, int64_t sum_stride) {
  const bool one_tile = heads <= Vec::kSumHeads && head_size <= Vec::kSums / Vec::kSumHeads * kLanes;
  const int64_t stretch = one_tile ? rows : kStretch;
  for (int64_t j = 0; j < rows; j += stretch) {
    const int64_t count = Min(stretch, rows - j);
    const float* weight = weights + j;
    const T* first = value.data + j * value.stride;
    int64_t h = 0;
    for (; h + Vec::kSumHeads <= heads; h += Vec::kSumHeads) {
      SumHeads<Vec::kSumHeads>(weight + h * weight_stride, weight_stride, first, value.stride, count, head_size,
                               sum + h * sum_stride, sum_stride);
    }
    for (; h + 2 <= heads; h += 2) {
      SumHeads<2>(weight + h * weight_stride, weight_stride, first, value.stride, count, head_size,
                  sum + h * sum_stride, sum_stride);
    }
    for (; h < heads; ++h) {
      SumHeads<1>(weight + h * weight_stride, weight_stride, first, value.stride, count, head_size,
                  sum + h * sum_stride, sum_stride);
    }
  }
}
