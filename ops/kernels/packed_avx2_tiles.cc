// int8 caches with AVX2: codes are widened to 16 bits, where vpmaddwd takes a whole 15-bit query or 14-bit weight at
// once.
#include "kernels/packed_avx2.h"

namespace deltallm {
namespace {

void QuantizeQuery(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                   const QuantizedQuery& out) {
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    __m256i largest = _mm256_setzero_si256();
    for (int64_t c = 0; c < head_size; c += kLanes) {
      const __m256 x = _mm256_maskload_ps(row + c, MaskOfFirst(Min(kLanes, head_size - c)));
      largest = _mm256_max_epi32(largest, MagnitudeBits(x));
    }
    const Quantizer quantizer(LargestLane(largest), kMostQuery);
    __m256i sum = _mm256_setzero_si256();
    for (int64_t c = 0; c < out.stride; c += kLanes) {
      const int64_t n = c < head_size ? Min(kLanes, head_size - c) : 0;
      const __m256i value = Codes(_mm256_maskload_ps(row + Min(c, head_size), MaskOfFirst(n)), quantizer.inverse);
      const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(value, _mm256_set1_epi32(64)), 7);
      const __m256i low = _mm256_sub_epi32(value, _mm256_slli_epi32(high, 7));
      StoreInt16(out.value + h * out.stride + c, value);
      StoreInt8(out.high + h * out.stride + c, high);
      StoreInt8(out.low + h * out.stride + c, low);
      sum = _mm256_add_epi32(sum, value);
    }
    out.step[h] = quantizer.step;
    out.sum[h] = SumOfLanes(sum);
  }
}

// ----------------------------------------------------------------------------------------------- int8: scores of tiles

template <int kHeads>
inline void ScoreTile(const QuantizedQuery& query, int64_t head, const uint8_t* tile, int64_t padded,
                      Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  // sums[h][i]: rows 4i … 4i + 3, two lanes each.
  __m256i sums[kHeads][4];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[h][i] = _mm256_setzero_si256();
  }
  const int16_t* value = query.value + head * query.stride;
  for (int64_t c = 0; c < padded; c += 4) {
    prefetcher.Ask();
    __m256i q[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) q[h] = Broadcast8(value + h * query.stride + c);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i codes = _mm256_cvtepu8_epi16(LoadBytes16(tile + c * kTileRows + 16 * i));
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sums[h][i] = _mm256_add_epi32(sums[h][i], _mm256_madd_epi16(codes, q[h]));
      }
    }
  }
  prefetcher.Ask();
  const uint8_t* scales = tile + kTileRows * padded;
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    // Codes are stored with 128 added to them.
    const uint32_t offset = 0u - 128u * static_cast<uint32_t>(query.sum[head + h]);
    const __m256 step = _mm256_set1_ps(query.step[head + h]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256i pairs = _mm256_hadd_epi32(sums[h][2 * i], sums[h][2 * i + 1]);
      const __m256i total =
          _mm256_add_epi32(_mm256_permute4x64_epi64(pairs, 0xD8), _mm256_set1_epi32(static_cast<int32_t>(offset)));
      const __m256 factor = _mm256_mul_ps(step, LoadHalves(scales + 16 * i));
      _mm256_storeu_ps(scores + h * score_stride + 8 * i, _mm256_mul_ps(factor, _mm256_cvtepi32_ps(total)));
    }
  }
}

// ---------------------------------------------------------------------------------------- int8: sums of value tiles

struct TileWeights {
  float step;
  alignas(32) int16_t value[kBlockRows];
};

inline void QuantizeTileWeights(const float* weights, const uint8_t* scales, int64_t tile_bytes, int64_t count,
                                TileWeights& out) {
  alignas(32) float scaled[kBlockRows];
  __m256i largest = _mm256_setzero_si256();
  for (int64_t j = 0; j < count * kTileRows; j += kLanes) {
    const __m256 scale = LoadHalves(scales + j / kTileRows * tile_bytes + 2 * (j % kTileRows));
    const __m256i bits = MagnitudeBits(_mm256_mul_ps(_mm256_loadu_ps(weights + j), scale));
    _mm256_store_ps(scaled + j, _mm256_castsi256_ps(bits));
    largest = _mm256_max_epi32(largest, bits);
  }
  const Quantizer quantizer(LargestLane(largest), kMostTileWeight);
  out.step = quantizer.step;
  for (int64_t j = 0; j < count * kTileRows; j += kLanes) {
    StoreInt16(out.value + j, Codes(_mm256_load_ps(scaled + j), quantizer.inverse));
  }
}

/// kVectors vectors of 4 channels, of which `channels` are to be added to.
template <int kHeads, int kVectors>
inline void AddTileColumns(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t padded,
                           int64_t channels, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  // sums[h][v]: channels 4v … 4v + 3, two lanes each.
  __m256i sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_si256();
  }
  for (int64_t j = 0; j < count * kTileRows; j += 4) {
    const uint8_t* group = tiles + j / kTileRows * TileBytes(padded) + j % kTileRows * padded;
    prefetcher.Ask();
    __m256i w[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) w[h] = Broadcast8(weights[h].value + j);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m256i codes = _mm256_cvtepi8_epi16(LoadBytes16(group + 16 * v));
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sums[h][v] = _mm256_add_epi32(sums[h][v], _mm256_madd_epi16(codes, w[h]));
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    alignas(32) int32_t totals[16];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m256i pairs = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[h][v], sums[h][v]), 0xD8);
      _mm_store_si128(reinterpret_cast<__m128i*>(totals + 4 * v), _mm256_castsi256_si128(pairs));
    }
    AddChannels(totals, channels, weights[h].step, 0.0f, sum + h * sum_stride);
  }
}

template <int kHeads>
inline void AddTileHeads(const float* weights, int64_t weight_stride, const uint8_t* tiles, int64_t count,
                         int64_t head_size, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const int64_t padded = PaddedSize(head_size);
  TileWeights codes[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    QuantizeTileWeights(weights + h * weight_stride, tiles + kTileRows * padded, TileBytes(padded), count, codes[h]);
  }
  int64_t c = 0;
  for (; c + 16 <= padded; c += 16) {
    AddTileColumns<kHeads, 4>(codes, tiles + 4 * c, count, padded, Min(16, head_size - c), prefetcher, sum + c,
                              sum_stride);
  }
  for (; c < padded; c += 4) {
    AddTileColumns<kHeads, 1>(codes, tiles + 4 * c, count, padded, Min(4, head_size - c), prefetcher, sum + c,
                              sum_stride);
  }
}

#include "kernels/packed_two_heads_tiles.h"

}  // namespace

const PackedKernels kAvx2PackedKernels = {"avx2",   QuantizeQuery,           ScoreTiles,
                                          AddTiles, packed_avx2::ScoreBlock, packed_avx2::AddBlock};

}  // namespace deltallm
