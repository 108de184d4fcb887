// Softmax and the sums of values in one loop.
// Part of prefill_avx512_bf16.cc, to be included there only.

constexpr int64_t kChunk = 2 * kLanes;  // keys whose weights are computed at once

/// Bits of 2^x for x ≤ 0, to be cut off to bfloat16: relative error below 8e-5, then rounded. 0 far below; NaN stays.
inline __m512i PowerBits(__m512 x) {
  // x − floor(x), 0 for −∞; scalef takes the floor itself.
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  // The polynomial of degree 3 with the least relative error on [0, 1], and half a unit of bfloat16 for its rounding.
  __m512 p = _mm512_set1_ps(7.802452266e-2f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.260671554e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.958335405e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999252186e-1f + 0x1p-8f));
  return _mm512_castps_si512(_mm512_scalef_ps(p, x));
}

/// The upper 16 bits of every lane, as indices into two vectors.
inline __m512i UpperHalves() {
  const __m512i first = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 31, 29, 27, 25, 23,
                                         21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_mask_add_epi16(first, 0xFFFF0000, first, _mm512_set1_epi16(32));
}

/// The weights of columns [j, j + kChunk) of a row, in place of its scores.
inline __attribute__((always_inline)) void WeighChunk(float* scores, int64_t j, __m512 shift) {
  const __m512i low = PowerBits(_mm512_sub_ps(_mm512_loadu_ps(scores + j), shift));
  const __m512i high = PowerBits(_mm512_sub_ps(_mm512_loadu_ps(scores + j + kLanes), shift));
  _mm512_storeu_si512(reinterpret_cast<uint16_t*>(scores) + j, _mm512_permutex2var_epi16(low, UpperHalves(), high));
}

/// Σ weights of whole chunks.
inline float SumOfWeights(const uint16_t* weights, ColumnRange chunks) {
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3F80);
  // Two at a time: one would wait for the last product each time.
  __m512 even = Vec::Zero();
  __m512 odd = Vec::Zero();
  int64_t j = chunks.begin;
  for (; j + kChunk < chunks.end; j += 2 * kChunk) {
    even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(weights + j), ones);
    odd = _mm512_dpbf16_ps(odd, (__m512bh)_mm512_loadu_si512(weights + j + kChunk), ones);
  }
  if (j < chunks.end) even = _mm512_dpbf16_ps(even, (__m512bh)_mm512_loadu_si512(weights + j), ones);
  return _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
}

/// Takes the scores of whole chunks to weights and adds their products with one panel of values. The units that
/// multiply are busy with the values; most of an exponential needs others, so the two are taken by turns.
template <int kRows, int kVectors>
__attribute__((noinline)) void WeighAndAddOf(float* scores, int64_t score_stride, const float* shifts,
                                             ColumnRange chunks, ColumnRange keys, const uint16_t* panel, float* sum,
                                             int64_t sum_stride) {
  constexpr int64_t kPairs = kChunk / 2;
  ProductTile<kRows, kVectors> tile;
  tile.Load(sum, sum_stride);
  for (int i = 0; i < kRows; ++i) WeighChunk(scores + i * score_stride, chunks.begin, _mm512_set1_ps(shifts[i]));
  for (int64_t j = chunks.begin; j < chunks.end; j += kChunk) {
    const int64_t next = j + kChunk;
    const int64_t first = Max(j, keys.begin) / 2;
    const int64_t last = Min(next, keys.end) / 2;
    for (int i = 0; i < kRows; ++i) {
      if (next < chunks.end) WeighChunk(scores + i * score_stride, next, _mm512_set1_ps(shifts[i]));
      const int64_t begin = Max(j / 2 + i * kPairs / kRows, first);
      const int64_t end = Min(j / 2 + (i + 1) * kPairs / kRows, last);
      tile.Add(reinterpret_cast<const uint16_t*>(scores), 2 * score_stride, panel, 2 * kVectors * kLanes, begin, end);
    }
  }
  tile.Store(sum, sum_stride);
}

template <int kVectors = 1>
inline void WeighAndAdd(int64_t rows, int64_t vectors, float* scores, int64_t score_stride, const float* shifts,
                        ColumnRange chunks, ColumnRange keys, const uint16_t* panel, float* sum, int64_t sum_stride) {
  if constexpr (kVectors < kMostVectors) {
    if (vectors > kVectors) {
      WeighAndAdd<kVectors + 1>(rows, vectors, scores, score_stride, shifts, chunks, keys, panel, sum, sum_stride);
      return;
    }
  }
  if (rows > kTileRows / 2) {
    WeighAndAddOf<kTileRows, kVectors>(scores, score_stride, shifts, chunks, keys, panel, sum, sum_stride);
  } else {
    WeighAndAddOf<kTileRows / 2, kVectors>(scores, score_stride, shifts, chunks, keys, panel, sum, sum_stride);
  }
}

/// Raises a row's maximum to its scores in whole chunks, of which it sees `seen`.
inline void RaiseMaximum(float* scores, ColumnRange chunks, ColumnRange seen, SoftmaxRow* row) {
  const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
  for (int64_t j = chunks.begin; j < seen.begin; j += kLanes) {
    _mm512_mask_storeu_ps(scores + j, LanesIn({chunks.begin, seen.begin}, j), hidden);
  }
  for (int64_t j = seen.end / kLanes * kLanes; j < chunks.end; j += kLanes) {
    _mm512_mask_storeu_ps(scores + j, LanesIn({seen.end, chunks.end}, j), hidden);
  }
  row->keep = 1.0f;
  const float top = LargestOf(scores, chunks);
  if (!(top > row->maximum)) return;
  // The first keys have nothing to rescale.
  if (row->maximum > -__builtin_inff()) row->keep = _mm512_cvtss_f32(Exp2(_mm512_set1_ps(row->maximum - top)));
  row->maximum = top;
}

void SoftmaxAndAddValues(float* scores, int64_t score_stride, int64_t rows, const ColumnRange* seen, SoftmaxRow* row,
                         const void* block, int64_t head_size, float* sum, int64_t sum_stride) {
  ColumnRange hull = seen[0];
  for (int64_t r = 1; r < rows; ++r) hull = {Min(hull.begin, seen[r].begin), Max(hull.end, seen[r].end)};
  const ColumnRange keys{hull.begin / 2 * 2, RoundUp(hull.end, 2)};
  const ColumnRange chunks{keys.begin / kChunk * kChunk, RoundUp(keys.end, kChunk)};
  float shifts[kTileRows] = {};
  for (int64_t r = 0; r < rows; ++r) {
    RaiseMaximum(scores + r * score_stride, chunks, seen[r], row + r);
    if (row[r].maximum > -__builtin_inff()) shifts[r] = row[r].maximum;
    if (row[r].keep == 1.0f) continue;
    row[r].denominator *= row[r].keep;
    for (int64_t c = 0; c < head_size; c += kLanes) {
      float* sums = sum + r * sum_stride + c;
      Vec::Store(sums, _mm512_mul_ps(Vec::Load(sums), _mm512_set1_ps(row[r].keep)));
    }
  }
  const auto* weights = reinterpret_cast<const uint16_t*>(scores);
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    const uint16_t* panel = static_cast<const uint16_t*>(block) + first * kLanes * kMostColumns;
    float* sums = sum + first * kLanes;
    if (first == 0) {
      WeighAndAdd(rows, vectors, scores, score_stride, shifts, chunks, keys, panel, sums, sum_stride);
    } else {
      const int64_t width = vectors * kLanes;
      Product<true>(rows, vectors, weights + keys.begin, 2 * score_stride, panel + keys.begin * width, 2 * width,
                    (keys.end - keys.begin) / 2, sums, sum_stride);
    }
  });
  for (int64_t r = 0; r < rows; ++r) row[r].denominator += SumOfWeights(weights + 2 * r * score_stride, chunks);
}
