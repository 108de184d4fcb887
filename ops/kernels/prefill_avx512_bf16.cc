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

/// kRows × 16·kVectors sums in registers.
template <int kRows, int kVectors>
struct ProductTile {
  __m512 sums[kRows][kVectors];

  inline __attribute__((always_inline)) void Clear() {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::Zero();
    }
  }

  inline __attribute__((always_inline)) void Load(const float* c, int64_t c_stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::Load(c + i * c_stride + v * kLanes);
    }
  }

  inline __attribute__((always_inline)) void Store(float* c, int64_t c_stride) const {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) Vec::Store(c + i * c_stride + v * kLanes, sums[i][v]);
    }
  }

  /// += a[kRows][2·(begin … end)] · b[begin … end][b_stride/2][2].
  inline __attribute__((always_inline)) void Add(const uint16_t* a, int64_t a_stride, const uint16_t* b,
                                                 int64_t b_stride, int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
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
  }
};

/// c[kRows][16·kVectors] = (kAccumulate ? c : 0) + a[kRows][2·pairs] · b[pairs][b_stride/2][2].
template <int kRows, int kVectors, bool kAccumulate>
__attribute__((noinline)) void ProductOf(const uint16_t* a, int64_t a_stride, const uint16_t* b, int64_t b_stride,
                                         int64_t pairs, float* c, int64_t c_stride) {
  ProductTile<kRows, kVectors> tile;
  if constexpr (kAccumulate) {
    tile.Load(c, c_stride);
  } else {
    tile.Clear();
  }
  tile.Add(a, a_stride, b, b_stride, 0, pairs);
  tile.Store(c, c_stride);
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
  const auto* keys = static_cast<const uint16_t*>(panel);
  for (int64_t j = 0; j < columns; j += kPanelKeys, keys += channels * kPanelKeys) {
    Product<false>(rows, (Min(columns - j, kPanelKeys) + kLanes - 1) / kLanes, static_cast<const uint16_t*>(tile),
                   channels, keys, kPanelPairs, channels / 2, scores + j, score_stride);
  }
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

#include "kernels/prefill_avx512_softmax.h"
#include "kernels/prefill_avx512_softmax_values.h"
#include "kernels/prefill_avx512_int8.h"

constexpr PrefillArithmetic kBfloat16 = {
    kPanelKeys, 2,          2,      QueryTileBytes, KeyPanelBytes,  ValueBlockBytes, PackQuery,
    PackKeys,   PackValues, Scores, Softmax,        ConvertWeights, AddValues,       SoftmaxAndAddValues};
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
                                     AddValues,
                                     SoftmaxAndAddValues};

}  // namespace

const PrefillKernels kAvx512Bf16PrefillKernels = {"avx512_bf16", &kAvx512PrefillFloat32, &kBfloat16, &kInt8};

}  // namespace deltallm
