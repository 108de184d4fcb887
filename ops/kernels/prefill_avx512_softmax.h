// Softmax of one row, with bfloat16 weights.
// Part of prefill_avx512_bf16.cc, to be included there only.

/// 2^x for x ≤ 127, relative error below 3e-6, far below bfloat16's own; 0 below −126; NaN stays NaN.
inline __m512 Exp2(__m512 x) {
  const __mmask16 is_normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  // x − floor(x), and scalef takes the floor itself.
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  // The polynomial of degree 4 with the least relative error on [0, 1].
  __m512 p = _mm512_set1_ps(1.353416797e-2f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.201146230e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.414427544e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.930038354e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.000002593f));
  return _mm512_maskz_scalef_ps(is_normal, p, x);
}

/// Lanes of columns [column, column + 16) that lie in `range`.
inline __mmask16 LanesIn(ColumnRange range, int64_t column) {
  const int64_t begin = Min(Max(range.begin - column, 0), kLanes);
  const int64_t end = Min(Max(range.end - column, begin), kLanes);
  return static_cast<__mmask16>((1u << end) - (1u << begin));
}

inline float LargestOf(const float* scores, ColumnRange seen) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  // The second operand of vmaxps is the result where either is a NaN, so a NaN is left out.
  __m512 even = lowest;
  __m512 odd = lowest;
  int64_t j = seen.begin;
  for (; j + 2 * kLanes <= seen.end; j += 2 * kLanes) {
    even = _mm512_max_ps(_mm512_loadu_ps(scores + j), even);
    odd = _mm512_max_ps(_mm512_loadu_ps(scores + j + kLanes), odd);
  }
  for (; j < seen.end; j += kLanes) {
    even = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, LanesIn(seen, j), scores + j), even);
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(even, odd));
}

uint32_t Softmax(float* scores, ColumnRange seen, ColumnRange written, const float* tokens, float skip_below,
                 SoftmaxRow* row, void* weights) {
  row->keep = 1.0f;
  const float top = LargestOf(scores, seen);
  if (top > row->maximum) {
    // The first keys have nothing to rescale.
    if (row->maximum > -__builtin_inff()) {
      row->keep = _mm512_cvtss_f32(Exp2(_mm512_set1_ps(row->maximum - top)));
      row->denominator *= row->keep;
    }
    row->maximum = top;
  }
  const __m512 shift = _mm512_set1_ps(row->maximum == -__builtin_inff() ? 0.0f : row->maximum);
  const __m512 least = _mm512_set1_ps(skip_below);
  const bool plain = tokens == nullptr && skip_below == 0.0f;
  auto* out = static_cast<uint16_t*>(weights);
  uint32_t stretches = plain ? ~0u : 0u;
  __m512 sum = Vec::Zero();
  const auto weights_at = [&](int64_t column) {
    const __mmask16 lanes = LanesIn(seen, column);
    const __m512 e =
        _mm512_maskz_mov_ps(lanes, Exp2(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, scores + column), shift)));
    const __m512 weight = tokens == nullptr ? e : _mm512_mul_ps(e, _mm512_maskz_loadu_ps(lanes, tokens + column));
    sum = _mm512_add_ps(sum, weight);
    const __mmask16 left =
        _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(e, least, _CMP_NLT_UQ), weight, Vec::Zero(), _CMP_NEQ_UQ);
    if (left != 0) stretches |= 1u << (column / 64);
    return _mm512_maskz_mov_ps(left, weight);
  };
  // Whole vectors are written: rows of weights have room for a multiple of 64, and what lies outside `written` is not
  // read.
  for (int64_t j = written.begin / 32 * 32; j < written.end; j += 2 * kLanes) {
    __m512 low;
    __m512 high;
    if (plain && j >= seen.begin && j + 2 * kLanes <= seen.end) {
      low = Exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + j), shift));
      high = Exp2(_mm512_sub_ps(_mm512_loadu_ps(scores + j + kLanes), shift));
      sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
    } else {
      low = weights_at(j);
      high = weights_at(j + kLanes);
    }
    _mm512_storeu_si512(out + j, ToBfloat16Pair(low, high));
  }
  row->denominator += _mm512_reduce_add_ps(sum);
  return stretches;
}

void ConvertWeights(const float* weights, ColumnRange columns, void* converted) {
  auto* out = static_cast<uint16_t*>(converted);
  for (int64_t j = columns.begin; j < columns.end; j += kLanes) {
    const __mmask16 lanes = LanesIn(columns, j);
    _mm256_mask_storeu_epi16(out + j, lanes, ToBfloat16(_mm512_maskz_loadu_ps(lanes, weights + j)));
  }
}
