// Prefill on bfloat16, with AVX512_BF16; and on 8-bit integers, with AVX512_VNNI beside it.
//
//     query tile   [6][D2] bfloat16, D2 = D rounded up to a multiple of 2
//     key panel    [D2/2][64 keys][2 channels] bfloat16
//     value block  per panel of up to 64 channels: [512/2 keys][channels][2 keys] bfloat16
#include <immintrin.h>

#include "kernels/prefill_kernels.h"

namespace deltallm {
namespace {

#define DELTALLM_VECTOR_KERNELS_INSIDE
#include "kernels/avx512_vector.h"

constexpr int kTileRows = PrefillArithmetic::kTileRows;
constexpr int64_t kMostColumns = PrefillArithmetic::kMostColumns;
constexpr int64_t kLanes = 16;
constexpr int kMostVectors = 4;  // × 6 rows: 24 accumulators
constexpr int64_t kPanelKeys = kMostVectors * kLanes;
constexpr int64_t kPanelPairs = 2 * kPanelKeys;  // elements of 64 keys × 2 channels

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

inline __m512i Broadcast32(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return _mm512_set1_epi32(bits);
}

/// 16 elements from row[c] on, 0 from the row's end on.
template <typename T>
inline __m512 LoadUpTo(const T* row, int64_t c, int64_t size) {
  if (c + kLanes <= size) return Vec::Load(row + c);
  return c < size ? Vec::LoadPart(row + c, size - c) : Vec::Zero();
}

inline __m512i ToBfloat16Pair(__m512 low, __m512 high) {
  const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
  return (__m512i)both;
}

inline __m256i ToBfloat16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// --------------------------------------------------------------------------------------------------- bfloat16 packing

int64_t QueryTileBytes(int64_t head_size) { return RoundUp(kTileRows * RoundUp(head_size, 2) * 2, 64); }
int64_t KeyPanelBytes(int64_t head_size) { return RoundUp(head_size, 2) * kPanelKeys * 2; }
int64_t ValueBlockBytes(int64_t head_size) { return kMostColumns * RoundUp(head_size, kLanes) * 2; }

void PackQuery(const float* rows, int64_t count, int64_t head_size, void* tile) {
  const int64_t stride = RoundUp(head_size, 2);
  for (int64_t r = 0; r < kTileRows; ++r) {
    auto* out = static_cast<uint16_t*>(tile) + r * stride;
    for (int64_t c = 0; c < stride; c += kLanes) {
      const __m512 x = r < count ? LoadUpTo(rows + r * head_size, c, head_size) : Vec::Zero();
      _mm256_mask_storeu_epi16(out + c, Vec::Mask(Min(kLanes, stride - c)), ToBfloat16(x));
    }
  }
}

template <typename T>
inline void PackKeysOf(const void* const* rows, int64_t count, int64_t head_size, void* panel) {
  const int64_t pairs = RoundUp(head_size, 2) / 2;
  for (int64_t j = 0; j < kPanelKeys; j += kLanes) {
    for (int64_t pair = 0; pair < pairs; pair += kLanes) {
      __m512 tile[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = Vec::Zero();
        if (j + i >= count) continue;
        const T* row = static_cast<const T*>(rows[j + i]);
        tile[i] = _mm512_castsi512_ps(
            ToBfloat16Pair(LoadUpTo(row, 2 * pair, head_size), LoadUpTo(row, 2 * pair + kLanes, head_size)));
      }
      Vec::Transpose(tile);
      auto* out = static_cast<float*>(panel) + pair * kPanelKeys + j;
      const int64_t width = Min(kLanes, pairs - pair);
      for (int64_t i = 0; i < width; ++i) Vec::Store(out + i * kPanelKeys, tile[i]);
    }
  }
}

void PackKeys(const void* const* rows, ElementType type, int64_t count, int64_t head_size, void* panel) {
  if (type == ElementType::kFloat32) {
    PackKeysOf<float>(rows, count, head_size, panel);
  } else {
    PackKeysOf<uint16_t>(rows, count, head_size, panel);
  }
}

/// Calls body(first vector, vectors) for every panel of channels, all about equally wide.
template <typename Body>
inline void ForEachChannelPanel(int64_t head_size, const Body& body) {
  const int64_t vectors = (head_size + kLanes - 1) / kLanes;
  const int64_t panels = (vectors + kMostVectors - 1) / kMostVectors;
  int64_t first = 0;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t count = (vectors - first + panels - p - 1) / (panels - p);
    body(first, count);
    first += count;
  }
}

template <typename T>
inline void PackValuesOf(const T* rows, int64_t first_row, int64_t count, int64_t head_size, uint16_t* block) {
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    uint16_t* out = block + (first * kMostColumns + first_row * vectors) * kLanes;
    for (int64_t j = 0; j < count; j += 2) {
      const T* row = rows + j * head_size;
      for (int64_t v = first; v < first + vectors; ++v, out += 2 * kLanes) {
        const __m256i even = ToBfloat16(LoadUpTo(row, v * kLanes, head_size));
        const __m256i odd =
            j + 1 < count ? ToBfloat16(LoadUpTo(row + head_size, v * kLanes, head_size)) : _mm256_setzero_si256();
        const __m512i pair =
            _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
        _mm512_storeu_si512(out, pair);
      }
    }
  });
}

void PackValues(const void* rows, ElementType type, int64_t first, int64_t count, int64_t head_size, void* block) {
  if (type == ElementType::kFloat32) {
    PackValuesOf(static_cast<const float*>(rows), first, count, head_size, static_cast<uint16_t*>(block));
  } else {
    PackValuesOf(static_cast<const uint16_t*>(rows), first, count, head_size, static_cast<uint16_t*>(block));
  }
}

// -------------------------------------------------------------------------------------------------- bfloat16 products

/// c[kRows][16·kVectors] = (kAccumulate ? c : 0) + a[kRows][2·pairs] · b[pairs][b_stride/2][2].
template <int kRows, int kVectors, bool kAccumulate>
inline void ProductOf(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_stride, int64_t pairs, float* c,
                      int64_t c_stride) {
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = kAccumulate ? Vec::Load(c + i * c_stride + v * kLanes) : Vec::Zero();
    }
  }
  for (int64_t l = 0; l < pairs; ++l) {
    __m512bh columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + l * b_stride + v * 2 * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512bh factor = (__m512bh)Broadcast32(a + i * a_stride + 2 * l);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_dpbf16_ps(sums[i][v], factor, columns[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) Vec::Store(c + i * c_stride + v * kLanes, sums[i][v]);
  }
}

template <bool kAccumulate, int kVectors = 1>
inline void Product(int64_t rows, int64_t vectors, const uint16_t* a, int64_t a_stride, const uint16_t* b,
                    int64_t b_stride, int64_t pairs, float* c, int64_t c_stride) {
  if constexpr (kVectors < kMostVectors) {
    if (vectors > kVectors) {
      Product<kAccumulate, kVectors + 1>(rows, vectors, a, a_stride, b, b_stride, pairs, c, c_stride);
      return;
    }
  }
  if (rows > kTileRows / 2) {
    ProductOf<kTileRows, kVectors, kAccumulate>(a, a_stride, b, b_stride, pairs, c, c_stride);
  } else {
    ProductOf<kTileRows / 2, kVectors, kAccumulate>(a, a_stride, b, b_stride, pairs, c, c_stride);
  }
}

void Scores(const void* tile, int64_t rows, const void* panel, int64_t columns, int64_t head_size, float* scores,
            int64_t score_stride) {
  const int64_t channels = RoundUp(head_size, 2);
  Product<false>(rows, (columns + kLanes - 1) / kLanes, static_cast<const uint16_t*>(tile), channels,
                 static_cast<const uint16_t*>(panel), kPanelPairs, channels / 2, scores, score_stride);
}

void AddValues(const void* weights, int64_t weight_stride, int64_t rows, const void* block, ColumnRange keys,
               int64_t head_size, float* sum, int64_t sum_stride) {
  ForEachChannelPanel(head_size, [&](int64_t first, int64_t vectors) {
    const int64_t width = vectors * kLanes;
    const uint16_t* panel = static_cast<const uint16_t*>(block) + first * kLanes * kMostColumns + keys.begin * width;
    Product<true>(rows, vectors, static_cast<const uint16_t*>(weights) + keys.begin, weight_stride, panel, 2 * width,
                  (keys.end - keys.begin) / 2, sum + first * kLanes, sum_stride);
  });
}

// ------------------------------------------------------------------------------------------------------------ softmax

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

#include "kernels/prefill_avx512_int8.h"

constexpr PrefillArithmetic kBfloat16 = {
    kPanelKeys, 2,          2,      QueryTileBytes, KeyPanelBytes,  ValueBlockBytes, PackQuery,
    PackKeys,   PackValues, Scores, Softmax,        ConvertWeights, AddValues};
constexpr PrefillArithmetic kInt8 = {kPanelKeys,
                                     2,
                                     2,
                                     Int8QueryTileBytes,
                                     Int8KeyPanelBytes,
                                     ValueBlockBytes,
                                     PackInt8Query,
                                     PackInt8Keys,
                                     PackValues,
                                     Int8Scores,
                                     Softmax,
                                     ConvertWeights,
                                     AddValues};

}  // namespace

const PrefillKernels kAvx512Bf16PrefillKernels = {"avx512_bf16", &kAvx512PrefillFloat32, &kBfloat16, &kInt8};

}  // namespace deltallm
