// int8 caches for NEON.
// Part of packed_neon_kernels.h, to be included there only.

// ----------------------------------------------------------------------------------------------- int8: scores of tiles

template <int kHeads>
inline void ScoreTile(const QuantizedQuery& query, int64_t head, const uint8_t* tile, int64_t padded,
                      Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  int32x4_t highs[kHeads][4];
  int32x4_t lows[kHeads][4];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) highs[h][i] = lows[h][i] = vdupq_n_s32(0);
  }
  const int8_t* high = query.high + head * query.stride;
  const int8_t* low = query.low + head * query.stride;
  for (int64_t c = 0; c < padded; c += 4) {
    prefetcher.Ask();
    int8x16_t codes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      // Codes are stored with 128 added to them.
      codes[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(tile + c * kTileRows + 16 * i), vdupq_n_u8(0x80)));
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const int8x16_t q_high = Broadcast(high + h * query.stride + c);
      const int8x16_t q_low = Broadcast(low + h * query.stride + c);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        highs[h][i] = DotAdd(highs[h][i], codes[i], q_high);
        lows[h][i] = DotAdd(lows[h][i], codes[i], q_low);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float32x4_t scale = LoadHalves(tile + kTileRows * padded + 8 * i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const float32x4_t factor = vmulq_n_f32(scale, query.step[head + h]);
      vst1q_f32(scores + h * score_stride + 4 * i, vmulq_f32(factor, Total(highs[h][i], lows[h][i])));
    }
  }
}

template <int kHeads>
inline void ScoreTileHeads(const QuantizedQuery& query, int64_t head, const uint8_t* tiles, int64_t count,
                           int64_t padded, Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  for (int64_t i = 0; i < count; ++i) {
    ScoreTile<kHeads>(query, head, tiles + i * TileBytes(padded), padded, prefetcher, scores + i * kTileRows,
                      score_stride);
  }
}

// ---------------------------------------------------------------------------------------- int8: sums of value tiles

/// The weights of one call and head as two planes of 7 bits.
struct TileWeights {
  float step;
  int8_t high[kBlockRows];
  int8_t low[kBlockRows];
};

inline void QuantizeTileWeights(const float* weights, const uint8_t* scales, int64_t tile_bytes, int64_t count,
                                TileWeights& out) {
  float scaled[kBlockRows];
  uint32x4_t largest = vdupq_n_u32(0);
  for (int64_t j = 0; j < count * kTileRows; j += kLanes) {
    const float32x4_t scale = LoadHalves(scales + j / kTileRows * tile_bytes + 2 * (j % kTileRows));
    const uint32x4_t bits = MagnitudeBits(vmulq_f32(vld1q_f32(weights + j), scale));
    vst1q_f32(scaled + j, vreinterpretq_f32_u32(bits));
    largest = vmaxq_u32(largest, bits);
  }
  const Quantizer quantizer(vmaxvq_u32(largest), kMostTileWeight);
  out.step = quantizer.step;
  for (int64_t j = 0; j < count * kTileRows; j += kLanes) {
    const int32x4_t value = Codes(vld1q_f32(scaled + j), quantizer.inverse);
    StoreBytes(out.high + j, vshrq_n_s32(value, 7));
    StoreBytes(out.low + j, vandq_s32(value, vdupq_n_s32(127)));
  }
}

/// kVectors vectors of 4 channels, of which `channels` are to be added to.
template <int kHeads, int kVectors>
inline void AddTileColumns(const TileWeights* weights, const uint8_t* tiles, int64_t count, int64_t padded,
                           int64_t channels, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  int32x4_t highs[kHeads][kVectors];
  int32x4_t lows[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) highs[h][v] = lows[h][v] = vdupq_n_s32(0);
  }
  for (int64_t j = 0; j < count * kTileRows; j += 4) {
    const uint8_t* group = tiles + j / kTileRows * TileBytes(padded) + j % kTileRows * padded;
    prefetcher.Ask();
    int8x16_t codes[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) codes[v] = vreinterpretq_s8_u8(vld1q_u8(group + 16 * v));
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const int8x16_t w_high = Broadcast(weights[h].high + j);
      const int8x16_t w_low = Broadcast(weights[h].low + j);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        highs[h][v] = DotAdd(highs[h][v], codes[v], w_high);
        lows[h][v] = DotAdd(lows[h][v], codes[v], w_low);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      AddChannels(Total(highs[h][v], lows[h][v]), weights[h].step, 0.0f, channels - 4 * v,
                  sum + h * sum_stride + 4 * v);
    }
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
    AddTileColumns<kHeads, 4>(codes, tiles + 4 * c, count, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
  for (; c < padded; c += 4) {
    AddTileColumns<kHeads, 1>(codes, tiles + 4 * c, count, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
}

#include "kernels/packed_tile_passes.h"
