// int8 caches with AVX-512 VNNI: 15-bit queries and 14-bit weights as two planes of bytes.
#include "kernels/packed_avx512_vnni.h"

namespace deltallm {
namespace {

void QuantizeQuery(const float* query, int64_t query_stride, int64_t heads, int64_t head_size,
                   const QuantizedQuery& out) {
  for (int64_t h = 0; h < heads; ++h) {
    const float* row = query + h * query_stride;
    __m512i largest = _mm512_setzero_si512();
    for (int64_t c = 0; c < head_size; c += kLanes) {
      const __m512 x = _mm512_maskz_loadu_ps(Mask(Min(kLanes, head_size - c)), row + c);
      largest = _mm512_max_epi32(largest, MagnitudeBits(x));
    }
    const Quantizer quantizer(static_cast<uint32_t>(_mm512_reduce_max_epi32(largest)), kMostQuery);
    const __mmask16 some = quantizer.inverse != 0.0f ? 0xFFFF : 0;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t c = 0; c < out.stride; c += kLanes) {
      const int64_t n = c < head_size ? Min(kLanes, head_size - c) : 0;
      const __m512 x = _mm512_maskz_loadu_ps(Mask(n), row + Min(c, head_size));
      const __m512i value = _mm512_maskz_mov_epi32(some, Codes(x, quantizer.inverse));
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(64)), 7);
      const __m512i low = _mm512_sub_epi32(value, _mm512_slli_epi32(high, 7));
      const int64_t at = h * out.stride + c;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.value + at), _mm512_cvtepi32_epi16(value));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out.high + at), _mm512_cvtepi32_epi8(high));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out.low + at), _mm512_cvtepi32_epi8(low));
      sum = _mm512_add_epi32(sum, value);
    }
    out.step[h] = quantizer.step;
    out.sum[h] = _mm512_reduce_add_epi32(sum);
  }
}

// ----------------------------------------------------------------------------------------------- int8: scores of tiles

/// The pointers are those of the first head and the first tile.
template <int kHeads, int kTiles>
inline void ScoreTileGroup(const QuantizedQuery& query, int64_t head, const uint8_t* tiles, int64_t padded,
                           Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  const int64_t tile_bytes = TileBytes(padded);
  __m512i highs[kHeads][kTiles];
  __m512i lows[kHeads][kTiles];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    // Codes are stored with 128 added to them.
    const uint32_t offset = 0u - 128u * static_cast<uint32_t>(query.sum[head + h]);
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) {
      highs[h][t] = _mm512_setzero_si512();
      lows[h][t] = _mm512_set1_epi32(static_cast<int32_t>(offset));
    }
  }
  const int8_t* high = query.high + head * query.stride;
  const int8_t* low = query.low + head * query.stride;
  const auto add = [&](int64_t c) __attribute__((always_inline)) {
    __m512i codes[kTiles];
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) codes[t] = LoadBytes(tiles + t * tile_bytes + c * kTileRows);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const __m512i q_high = Broadcast(high + h * query.stride + c);
      const __m512i q_low = Broadcast(low + h * query.stride + c);
#pragma GCC unroll 8
      for (int t = 0; t < kTiles; ++t) {
        highs[h][t] = DotAdd(highs[h][t], codes[t], q_high);
        lows[h][t] = DotAdd(lows[h][t], codes[t], q_low);
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
#pragma GCC unroll 8
  for (int t = 0; t < kTiles; ++t) {
    const __m512 scale = LoadHalves(tiles + t * tile_bytes + kTileRows * padded);
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const __m512i total = _mm512_add_epi32(_mm512_slli_epi32(highs[h][t], 7), lows[h][t]);
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(query.step[head + h]), scale);
      _mm512_storeu_ps(scores + h * score_stride + t * kTileRows, _mm512_mul_ps(factor, _mm512_cvtepi32_ps(total)));
    }
  }
}

template <int kHeads, int kTiles>
inline void ScoreTileHeads(const QuantizedQuery& query, int64_t head, const uint8_t* tiles, int64_t count,
                           int64_t padded, int64_t passes, float* scores, int64_t score_stride, const Ahead& ahead) {
  Prefetcher prefetcher(ahead, head / kMostHeads, passes, (count + kTiles - 1) / kTiles * (padded / 16));
  float* first = scores + head * score_stride;
  int64_t i = 0;
  for (; i + kTiles <= count; i += kTiles) {
    ScoreTileGroup<kHeads, kTiles>(query, head, tiles + i * TileBytes(padded), padded, prefetcher,
                                   first + i * kTileRows, score_stride);
  }
  for (; i < count; ++i) {
    ScoreTileGroup<kHeads, 1>(query, head, tiles + i * TileBytes(padded), padded, prefetcher, first + i * kTileRows,
                              score_stride);
  }
}

void ScoreTiles(const QuantizedQuery& query, int64_t heads, const uint8_t* tiles, int64_t count, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  // With several passes the tiles are taken in stretches that the first-level cache holds for the next one.
  const int64_t stretch = passes == 1 ? count : 8;
  for (int64_t i = 0; i < count; i += stretch) {
    const int64_t n = Min(stretch, count - i);
    const uint8_t* first = tiles + i * TileBytes(padded);
    float* row = scores + i * kTileRows;
    const Ahead part = ahead.Part(i, i + n, count);
    for (int64_t h = 0; h < heads; h += kMostHeads) {
      switch (Min(kMostHeads, heads - h)) {
        case 4:
          ScoreTileHeads<4, 2>(query, h, first, n, padded, passes, row, score_stride, part);
          break;
        case 3:
          ScoreTileHeads<3, 2>(query, h, first, n, padded, passes, row, score_stride, part);
          break;
        case 2:
          ScoreTileHeads<2, 4>(query, h, first, n, padded, passes, row, score_stride, part);
          break;
        default:
          ScoreTileHeads<1, 4>(query, h, first, n, padded, passes, row, score_stride, part);
          break;
      }
    }
  }
}

// ---------------------------------------------------------------------------------------- int8: sums of value tiles

/// The weights of one call and head as two planes of 7 bits.
struct TileWeights {
  float step;
  alignas(64) uint8_t high[kBlockRows];
  alignas(64) uint8_t low[kBlockRows];
};

/// kWhole: there are 8 tiles. Otherwise rows behind the last one are not read and count as 0.
template <int kHeads, bool kWhole>
inline void QuantizeTileWeights(const float* weights, int64_t weight_stride, const uint8_t* scales, int64_t tile_bytes,
                                int64_t count, TileWeights (&out)[kHeads]) {
  __m512 scale[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    scale[i] = kWhole || i < count ? LoadHalves(scales + i * tile_bytes) : _mm512_setzero_ps();
  }
  const auto product = [&](int h, int i) __attribute__((always_inline)) {
    const float* weight = weights + h * weight_stride + i * kTileRows;
    if constexpr (kWhole) return _mm512_mul_ps(_mm512_loadu_ps(weight), scale[i]);
    return _mm512_mul_ps(_mm512_maskz_loadu_ps(i < count ? 0xFFFF : 0, weight), scale[i]);
  };
  __m512i largest[kMostHeads] = {};
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) largest[h] = _mm512_max_epu32(largest[h], _mm512_castps_si512(product(h, i)));
  }
  const Quantizers quantizers(LargestLanes(largest), kMostTileWeight);
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    out[h].step = quantizers.step[h];
    __m512i words[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      __m512i value[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        // Computed again: sixteen of them are too many to keep.
        value[i] = Codes(product(h, 2 * k + i), quantizers.inverse[h]);
      }
      words[k] = _mm512_packus_epi32(value[0], value[1]);
    }
#pragma GCC unroll 2
    for (int k = 0; k < 4; k += 2) {
      const __m512i low = _mm512_set1_epi16(127);
      _mm512_store_si512(out[h].high + 32 * k,
                         PackBytes(_mm512_srli_epi16(words[k], 7), _mm512_srli_epi16(words[k + 1], 7)));
      _mm512_store_si512(out[h].low + 32 * k,
                         PackBytes(_mm512_and_si512(words[k], low), _mm512_and_si512(words[k + 1], low)));
    }
  }
}

/// kVectors vectors of 16 channels, the last of which has only `channels` mod 16 where kPart.
template <int kHeads, int kVectors, bool kPart>
inline void AddTileColumns(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t padded,
                           __mmask16 load, __mmask16 store, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  __m512i highs[kHeads][kVectors];
  __m512i lows[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) highs[h][v] = lows[h][v] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* tile = tiles + i * TileBytes(padded);
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m512i codes[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = tile + r * 4 * padded + v * 64;
        codes[v] = kPart ? _mm512_maskz_loadu_epi32(load, p) : LoadBytes(p);
      }
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const __m512i w_high = Broadcast(weights[h].high + i * kTileRows + 4 * r);
        const __m512i w_low = Broadcast(weights[h].low + i * kTileRows + 4 * r);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          highs[h][v] = DotAdd(highs[h][v], w_high, codes[v]);
          lows[h][v] = DotAdd(lows[h][v], w_low, codes[v]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    const __m512 step = _mm512_set1_ps(weights[h].step);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512i total = _mm512_add_epi32(_mm512_slli_epi32(highs[h][v], 7), lows[h][v]);
      float* p = sum + h * sum_stride + v * kLanes;
      const __m512 before = kPart ? _mm512_maskz_loadu_ps(store, p) : _mm512_loadu_ps(p);
      const __m512 after = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(total), before);
      if constexpr (kPart) {
        _mm512_mask_storeu_ps(p, store, after);
      } else {
        _mm512_storeu_ps(p, after);
      }
    }
  }
}

template <int kHeads, int kVectors>
inline int64_t AddTileWhole(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t head_size,
                            int64_t c, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  for (; c + kVectors * kLanes <= head_size; c += kVectors * kLanes) {
    AddTileColumns<kHeads, kVectors, false>(weights, tiles + 4 * c, count, PaddedSize(head_size), 0, 0, prefetcher,
                                            sum + c, sum_stride);
  }
  if constexpr (kVectors == 1) {
    return c;
  } else {
    return AddTileWhole<kHeads, kVectors / 2>(weights, tiles, count, head_size, c, prefetcher, sum, sum_stride);
  }
}

/// One pass: all channels for kHeads heads.
template <int kHeads, int kVectors>
inline void AddTileHeads(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t head_size,
                         int64_t pass, int64_t passes, float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  Prefetcher prefetcher(ahead, pass, passes, count * ((padded + kVectors * kLanes - 1) / (kVectors * kLanes)));
  const int64_t c = AddTileWhole<kHeads, kVectors>(weights, tiles, count, head_size, 0, prefetcher, sum, sum_stride);
  if (c < head_size) {
    AddTileColumns<kHeads, 1, true>(weights, tiles + 4 * c, count, padded, Mask(padded - c), Mask(head_size - c),
                                    prefetcher, sum + c, sum_stride);
  }
}

/// Two planes of four heads would need every register: they are quantised together and added two by two.
template <int kHeads>
inline void AddTileGroup(const float* weights, int64_t weight_stride, const uint8_t* tiles, int64_t count,
                         int64_t head_size, int64_t pass, int64_t passes, float* sum, int64_t sum_stride,
                         const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  TileWeights codes[kHeads];
  const uint8_t* scales = tiles + kTileRows * padded;
  if (count == kBlockRows / kTileRows) {
    QuantizeTileWeights<kHeads, true>(weights, weight_stride, scales, TileBytes(padded), count, codes);
  } else {
    QuantizeTileWeights<kHeads, false>(weights, weight_stride, scales, TileBytes(padded), count, codes);
  }
  if constexpr (kHeads >= 2) AddTileHeads<2, 4>(codes, tiles, count, head_size, pass, passes, sum, sum_stride, ahead);
  if constexpr (kHeads == 4) {
    AddTileHeads<2, 4>(codes + 2, tiles, count, head_size, pass + 1, passes, sum + 2 * sum_stride, sum_stride, ahead);
  } else if constexpr (kHeads % 2 == 1) {
    constexpr int kLast = kHeads - 1;
    AddTileHeads<1, 8>(codes + kLast, tiles, count, head_size, pass + kLast / 2, passes, sum + kLast * sum_stride,
                       sum_stride, ahead);
  }
}

void AddTiles(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* tiles, int64_t count,
              int64_t head_size, float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t passes = (heads + 1) / 2;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    const float* weight = weights + h * weight_stride;
    float* first = sum + h * sum_stride;
    switch (Min(kMostHeads, heads - h)) {
      case 4:
        AddTileGroup<4>(weight, weight_stride, tiles, count, head_size, h / 2, passes, first, sum_stride, ahead);
        break;
      case 3:
        AddTileGroup<3>(weight, weight_stride, tiles, count, head_size, h / 2, passes, first, sum_stride, ahead);
        break;
      case 2:
        AddTileGroup<2>(weight, weight_stride, tiles, count, head_size, h / 2, passes, first, sum_stride, ahead);
        break;
      default:
        AddTileGroup<1>(weight, weight_stride, tiles, count, head_size, h / 2, passes, first, sum_stride, ahead);
        break;
    }
  }
}

}  // namespace

const PackedKernels kAvx512VnniPackedKernels = {
    "avx512_vnni", QuantizeQuery, ScoreTiles, AddTiles, packed_avx512_vnni::ScoreBlock, packed_avx512_vnni::AddBlock};

}  // namespace deltallm
