// int8 caches with AVX2: codes are widened to 16 bits, where vpmaddwd takes a whole 15-bit query or 14-bit weight at
// once.
#include "kernels/packed_avx2.h"

namespace deltallm {
namespace {

// ---------------------------------------------------------------------------------------------------- int8: queries

inline int32_t SumOfLanes(__m256i x) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtsi128_si32(four);
}

inline __m128i ToInt16(__m256i x) { return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }

inline void StoreInt8(int8_t* p, __m256i x) {
  const __m128i words = ToInt16(x);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

void QuantizeQuery(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                   const QuantizedQuery& out) {
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    __m256i largest[1] = {_mm256_setzero_si256()};
    for (int64_t c = 0; c < head_size; c += kLanes) {
      const __m256 x = _mm256_maskload_ps(row + c, MaskOfFirst(Min(kLanes, head_size - c)));
      largest[0] = _mm256_max_epi32(largest[0], MagnitudeBits(x));
    }
    const Quantizers quantizers(LargestLanes(largest), kMostQuery);
    const __m256 inverse = _mm256_set1_ps(quantizers.inverse[0]);
    // 0 times a number that is not finite is not 0.
    const __m256i some = _mm256_set1_epi32(quantizers.inverse[0] != 0.0f ? -1 : 0);
    __m256i sum = _mm256_setzero_si256();
    for (int64_t c = 0; c < out.stride; c += kLanes) {
      const int64_t n = c < head_size ? Min(kLanes, head_size - c) : 0;
      const __m256 x = _mm256_maskload_ps(row + Min(c, head_size), MaskOfFirst(n));
      const __m256i value = _mm256_and_si256(some, Codes(x, inverse));
      const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(value, _mm256_set1_epi32(64)), 7);
      const __m256i low = _mm256_sub_epi32(value, _mm256_slli_epi32(high, 7));
      const int64_t at = h * out.stride + c;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out.value + at), ToInt16(value));
      StoreInt8(out.high + at, high);
      StoreInt8(out.low + at, low);
      sum = _mm256_add_epi32(sum, value);
    }
    out.step[h] = quantizers.step[0];
    out.sum[h] = SumOfLanes(sum);
  }
}

// --------------------------------------------------------------------------------------------- int8: bytes to words

// Bytes by fours, c … c + 3, are taken apart into words c, c + 2 and words c + 1, c + 3: vpmaddwd then adds up a row or
// channel within one lane, and each vector of words serves every head of a pass.

inline __m256i Evens(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(255)); }
inline __m256i Odds(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }
inline __m256i SignedEvens(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
inline __m256i SignedOdds(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }

/// Words c … c + 3 as c, c + 2, c + 1, c + 3.
inline __m256i EvensFirst(__m256i words) { return _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xD8), 0xD8); }

/// sum + a · b by pairs. The addition is written out because GCC 12 sums products up in trees, which it spills.
inline __m256i MultiplyAdd(__m256i sum, __m256i a, __m256i b) {
  const __m256i product = _mm256_madd_epi16(a, b);
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
  return sum;
}

// ----------------------------------------------------------------------------------------------- int8: scores of tiles

struct TileQuery {
  float step;
  int32_t offset;                                  ///< what the 128 that is added to stored codes makes too much
  alignas(32) int16_t value[kMostPackedHeadSize];  ///< by fours as EvensFirst leaves them
};

inline void ArrangeQuery(const QuantizedQuery& query, int64_t head, int64_t padded, TileQuery& out) {
  out.step = query.step[head];
  // What wraps around here wraps back in the sum.
  out.offset = static_cast<int32_t>(0u - 128u * static_cast<uint32_t>(query.sum[head]));
  for (int64_t c = 0; c < padded; c += 16) {
    const __m256i words = EvensFirst(LoadBytes(query.value + head * query.stride + c));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out.value + c), words);
  }
}

template <int kHeads>
inline void ScoreTile(const TileQuery* query, const uint8_t* tile, int64_t padded, Prefetcher& prefetcher,
                      float* scores, int64_t score_stride) {
  __m256i sums[kHeads][2];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) sums[h][0] = sums[h][1] = _mm256_set1_epi32(query[h].offset);
  const auto add = [&](int64_t c) __attribute__((always_inline)) {
    const __m256i codes[2] = {LoadBytes(tile + c * kTileRows), LoadBytes(tile + c * kTileRows + 32)};
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
      const __m256i first = odd ? Odds(codes[0]) : Evens(codes[0]);
      const __m256i second = odd ? Odds(codes[1]) : Evens(codes[1]);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const __m256i q = Broadcast4(query[h].value + c + 2 * odd);
        sums[h][0] = MultiplyAdd(sums[h][0], first, q);
        sums[h][1] = MultiplyAdd(sums[h][1], second, q);
      }
    }
  };
  int64_t c = 0;
  for (; c + 16 <= padded; c += 16) {
    prefetcher.Ask();
    add(c);
    add(c + 4);
    add(c + 8);
    add(c + 12);
  }
  for (; c < padded; c += 4) add(c);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m256 scale = LoadHalves(tile + kTileRows * padded + 16 * i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(query[h].step), scale);
      _mm256_storeu_ps(scores + h * score_stride + 8 * i, _mm256_mul_ps(factor, _mm256_cvtepi32_ps(sums[h][i])));
    }
  }
}

template <int kHeads>
inline void ScoreTileHeads(const QuantizedQuery& query, int64_t head, const uint8_t* tiles, int64_t count,
                           int64_t padded, Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  TileQuery arranged[kHeads];
  for (int h = 0; h < kHeads; ++h) ArrangeQuery(query, head + h, padded, arranged[h]);
  for (int64_t i = 0; i < count; ++i) {
    ScoreTile<kHeads>(arranged, tiles + i * TileBytes(padded), padded, prefetcher, scores + i * kTileRows,
                      score_stride);
  }
}

// ---------------------------------------------------------------------------------------- int8: sums of value tiles

struct TileWeights {
  float step;
  /// By fours as EvensFirst leaves them; of a tile's four fours, the second and the third are exchanged.
  alignas(32) int16_t value[kBlockRows];
};

template <int kHeads>
inline void QuantizeTileWeights(const float* weights, int64_t weight_stride, const uint8_t* scales, int64_t tile_bytes,
                                int64_t count, TileWeights (&out)[kHeads]) {
  alignas(32) float scaled[kHeads][kBlockRows];
  __m256i largest[kHeads];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) largest[h] = _mm256_setzero_si256();
  const int64_t rows = count * kTileRows;
  for (int64_t j = 0; j < rows; j += kLanes) {
    const __m256 scale = LoadHalves(scales + j / kTileRows * tile_bytes + 2 * (j % kTileRows));
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256i magnitude = MagnitudeBits(_mm256_mul_ps(_mm256_loadu_ps(weights + h * weight_stride + j), scale));
      _mm256_store_ps(scaled[h] + j, _mm256_castsi256_ps(magnitude));
      largest[h] = _mm256_max_epi32(largest[h], magnitude);
    }
  }
  const Quantizers quantizers(LargestLanes(largest), kMostTileWeight);
  for (int h = 0; h < kHeads; ++h) {
    out[h].step = quantizers.step[h];
    const __m256 inverse = _mm256_set1_ps(quantizers.inverse[h]);
    for (int64_t j = 0; j < rows; j += 2 * kLanes) {
      const __m256i first = Codes(_mm256_load_ps(scaled[h] + j), inverse);
      const __m256i second = Codes(_mm256_load_ps(scaled[h] + j + kLanes), inverse);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out[h].value + j), EvensFirst(_mm256_packs_epi32(first, second)));
    }
  }
}

/// kVectors vectors of 8 channels, the last of which has only 4 where kPart; `channels` of them are to be added to.
template <int kHeads, int kVectors, bool kPart>
inline void AddTileColumns(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t padded,
                           int64_t channels, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  constexpr int kPlaceOfFour[4] = {0, 8, 4, 12};
  __m256i sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_si256();
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* tile = tiles + i * TileBytes(padded);
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m256i codes[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = tile + g * 4 * padded + 32 * v;
        codes[v] = kPart ? _mm256_zextsi128_si256(LoadBytes16(p)) : LoadBytes(p);
      }
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        __m256i words[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) words[v] = odd ? SignedOdds(codes[v]) : SignedEvens(codes[v]);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const __m256i w = Broadcast4(weights[h].value + i * kTileRows + kPlaceOfFour[g] + 2 * odd);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[h][v] = MultiplyAdd(sums[h][v], words[v], w);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      AddChannels(sums[h][v], weights[h].step, 0.0f, channels - kLanes * v, sum + h * sum_stride + kLanes * v);
    }
  }
}

template <int kHeads>
inline void AddTileHeads(const float* weights, int64_t weight_stride, const uint8_t* tiles, int64_t count,
                         int64_t head_size, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const int64_t padded = PaddedSize(head_size);
  TileWeights codes[kHeads];
  QuantizeTileWeights<kHeads>(weights, weight_stride, tiles + kTileRows * padded, TileBytes(padded), count, codes);
  int64_t c = 0;
  for (; c + 16 <= padded; c += 16) {
    AddTileColumns<kHeads, 2, false>(codes, tiles + 4 * c, count, padded, head_size - c, prefetcher, sum + c,
                                     sum_stride);
  }
  if (c + 8 <= padded) {
    AddTileColumns<kHeads, 1, false>(codes, tiles + 4 * c, count, padded, head_size - c, prefetcher, sum + c,
                                     sum_stride);
    c += 8;
  }
  if (c < padded) {
    AddTileColumns<kHeads, 1, true>(codes, tiles + 4 * c, count, padded, head_size - c, prefetcher, sum + c,
                                    sum_stride);
  }
}

#include "kernels/packed_tile_passes.h"

}  // namespace

const PackedKernels kAvx2PackedKernels = {"avx2",   QuantizeQuery,           ScoreTiles,
                                          AddTiles, packed_avx2::ScoreBlock, packed_avx2::AddBlock};

}  // namespace deltallm
