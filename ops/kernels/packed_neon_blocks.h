// int4 blocks for NEON.
// Part of packed_neon_kernels.h, to be included there only.

// ---------------------------------------------------------------------------------------------- int4: scores of blocks

struct BlockQuery {
  float step;
  float start;
  int8_t codes[kMostPackedHeadSize];
};

inline void QuantizeBlockQuery(const float* query, const uint8_t* scales, int64_t head_size, BlockQuery& out) {
  const uint8_t* zeros = scales + 2 * PaddedSize(head_size);
  float scaled[kMostPackedHeadSize];
  uint32x4_t largest = vdupq_n_u32(0);
  float32x4_t start = vdupq_n_f32(0.0f);
  for (int64_t c = 0; c < head_size; c += kLanes) {
    const int64_t n = head_size - c;
    const bool whole = n >= kLanes;
    const float32x4_t q = whole ? vld1q_f32(query + c) : LoadPart(query + c, n);
    const float32x4_t scale = whole ? LoadHalves(scales + 2 * c) : LoadHalvesPart(scales + 2 * c, n);
    const float32x4_t zero = whole ? LoadHalves(zeros + 2 * c) : LoadHalvesPart(zeros + 2 * c, n);
    const float32x4_t product = vmulq_f32(q, scale);
    vst1q_f32(scaled + c, product);
    largest = vmaxq_u32(largest, MagnitudeBits(product));
    start = vfmaq_f32(start, q, zero);
  }
  const Quantizer quantizer(vmaxvq_u32(largest), kMostBlockQuery);
  out.step = quantizer.step;
  out.start = vaddvq_f32(start);
  for (int64_t c = 0; c < head_size; c += kLanes) {
    StoreBytes(out.codes + c, Codes(vld1q_f32(scaled + c), quantizer.inverse));
  }
}

/// 32 rows of the block.
template <int kHeads>
inline void ScoreBlockQuarter(const BlockQuery* query, const uint8_t* codes, int64_t padded, Prefetcher& prefetcher,
                              float* scores, int64_t score_stride) {
  int32x4_t sums[kHeads][8];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[h][i] = vdupq_n_s32(0);
  }
  for (int64_t c = 0; c < padded; c += 4) {
    prefetcher.Ask();
    int8x16_t rows[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t pairs = vld1q_u8(codes + c * 16 + 16 * i);
      rows[i] = vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)));
      rows[4 + i] = vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4));
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const int8x16_t q = Broadcast(query[h].codes + c);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sums[h][i] = DotAdd(sums[h][i], rows[i], q);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      vst1q_f32(scores + h * score_stride + 4 * i,
                vfmaq_n_f32(vdupq_n_f32(query[h].start), vcvtq_f32_s32(sums[h][i]), query[h].step));
    }
  }
}

template <int kHeads>
inline void ScoreBlockHeads(const float* query, int64_t query_stride, const uint8_t* block, int64_t head_size,
                            Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  const int64_t padded = PaddedSize(head_size);
  BlockQuery codes[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    QuantizeBlockQuery(query + h * query_stride, block + kBlockRows / 2 * padded, head_size, codes[h]);
  }
  for (int64_t z = 0; z < 4; ++z) {
    ScoreBlockQuarter<kHeads>(codes, block + z * padded * 16, padded, prefetcher, scores + 32 * z, score_stride);
  }
}

// --------------------------------------------------------------------------------------- int4: sums of value blocks

struct BlockWeights {
  float step;
  float start;
  uint8_t codes[kBlockRows];
};

inline void QuantizeBlockWeights(const float* weights, const uint8_t* scales, BlockWeights& out) {
  const uint8_t* zeros = scales + 2 * kBlockRows;
  float scaled[kBlockRows];
  uint32x4_t largest = vdupq_n_u32(0);
  float32x4_t start = vdupq_n_f32(0.0f);
  for (int64_t j = 0; j < kBlockRows; j += kLanes) {
    const float32x4_t weight = vld1q_f32(weights + j);
    const uint32x4_t bits = MagnitudeBits(vmulq_f32(weight, LoadHalves(scales + 2 * j)));
    vst1q_f32(scaled + j, vreinterpretq_f32_u32(bits));
    largest = vmaxq_u32(largest, bits);
    start = vfmaq_f32(start, weight, LoadHalves(zeros + 2 * j));
  }
  const Quantizer quantizer(vmaxvq_u32(largest), kMostBlockWeight);
  out.step = quantizer.step;
  out.start = vaddvq_f32(start);
  for (int64_t j = 0; j < kBlockRows; j += kLanes) {
    StoreBytes(out.codes + j, Codes(vld1q_f32(scaled + j), quantizer.inverse));
  }
}

/// kVectors vectors of 4 channels, of which `channels` are to be added to.
template <int kHeads, int kVectors>
inline void AddBlockColumns(const BlockWeights* weights, const uint8_t* codes, int64_t padded, int64_t channels,
                            Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  uint32x4_t sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[h][v] = vdupq_n_u32(0);
  }
  for (int64_t i = 0; i < 16; ++i) {
    prefetcher.Ask();
    uint8x16_t low[kVectors];
    uint8x16_t high[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const uint8x16_t pairs = vld1q_u8(codes + i * 4 * padded + 16 * v);
      low[v] = vandq_u8(pairs, vdupq_n_u8(15));
      high[v] = vshrq_n_u8(pairs, 4);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const uint8x16_t w_low = Broadcast(weights[h].codes + 8 * i);
      const uint8x16_t w_high = Broadcast(weights[h].codes + 8 * i + 4);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[h][v] = DotAdd(DotAdd(sums[h][v], low[v], w_low), high[v], w_high);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      AddChannels(vcvtq_f32_u32(sums[h][v]), weights[h].step, weights[h].start, channels - 4 * v,
                  sum + h * sum_stride + 4 * v);
    }
  }
}

template <int kHeads>
inline void AddBlockHeads(const float* weights, int64_t weight_stride, const uint8_t* block, int64_t head_size,
                          Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const int64_t padded = PaddedSize(head_size);
  BlockWeights codes[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    QuantizeBlockWeights(weights + h * weight_stride, block + kBlockRows / 2 * padded, codes[h]);
  }
  int64_t c = 0;
  for (; c + 16 <= padded; c += 16) {
    AddBlockColumns<kHeads, 4>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
  for (; c < padded; c += 4) {
    AddBlockColumns<kHeads, 1>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
}

#include "kernels/packed_block_passes.h"
