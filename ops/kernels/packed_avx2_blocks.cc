// int4 blocks with AVX2: codes stay bytes for vpmaddubsw, whose 16-bit sums are widened in time.
#include "kernels/packed_avx2.h"

namespace deltallm {
namespace {

// ---------------------------------------------------------------------------------------------- int4: scores of blocks

struct BlockQuery {
  float step;
  float start;
  alignas(32) int8_t codes[kMostPackedHeadSize];
};

inline void QuantizeBlockQuery(const float* query, const uint8_t* scales, int64_t head_size, BlockQuery& out) {
  const uint8_t* zeros = scales + 2 * PaddedSize(head_size);
  alignas(32) float scaled[kMostPackedHeadSize];
  __m256i largest = _mm256_setzero_si256();
  __m256 start = _mm256_setzero_ps();
  for (int64_t c = 0; c < head_size; c += kLanes) {
    // Behind the last scale and the last zero lie other parts of the block, which must not count.
    const __m256i mask = MaskOfFirst(head_size - c);
    const __m256 q = _mm256_maskload_ps(query + c, mask);
    const __m256 scale = _mm256_and_ps(LoadHalves(scales + 2 * c), _mm256_castsi256_ps(mask));
    const __m256 zero = _mm256_and_ps(LoadHalves(zeros + 2 * c), _mm256_castsi256_ps(mask));
    const __m256 product = _mm256_mul_ps(q, scale);
    _mm256_store_ps(scaled + c, product);
    largest = _mm256_max_epi32(largest, MagnitudeBits(product));
    start = _mm256_fmadd_ps(q, zero, start);
  }
  const Quantizer quantizer(LargestLane(largest), kMostBlockQuery);
  out.step = quantizer.step;
  out.start = SumOfLanes(start);
  for (int64_t c = 0; c < head_size; c += kLanes) {
    StoreInt8(out.codes + c, Codes(_mm256_load_ps(scaled + c), quantizer.inverse));
  }
}

/// 32 rows of the block.
template <int kHeads>
inline void ScoreBlockQuarter(const BlockQuery* query, const uint8_t* codes, int64_t padded, Prefetcher& prefetcher,
                              float* scores, int64_t score_stride) {
  // 15 · 127 · 2 per product of pairs: eight of them fit 16 bits.
  constexpr int64_t kChannelsPerSum = 8 * 4;
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kHeads][4];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums[h][i] = _mm256_setzero_si256();
  }
  for (int64_t begin = 0; begin < padded; begin += kChannelsPerSum) {
    __m256i words[kHeads][4];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) words[h][i] = _mm256_setzero_si256();
    }
    const int64_t end = Min(padded, begin + kChannelsPerSum);
    for (int64_t c = begin; c < end; c += 4) {
      prefetcher.Ask();
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256i pairs = LoadBytes(codes + c * 16 + 32 * half);
        const __m256i low = _mm256_and_si256(pairs, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const __m256i q = Broadcast4(query[h].codes + c);
          words[h][half] = _mm256_add_epi16(words[h][half], _mm256_maddubs_epi16(low, q));
          words[h][2 + half] = _mm256_add_epi16(words[h][2 + half], _mm256_maddubs_epi16(high, q));
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[h][i] = _mm256_add_epi32(sums[h][i], _mm256_madd_epi16(words[h][i], ones));
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256 total = _mm256_cvtepi32_ps(sums[h][i]);
      _mm256_storeu_ps(scores + h * score_stride + 8 * i,
                       _mm256_fmadd_ps(_mm256_set1_ps(query[h].step), total, _mm256_set1_ps(query[h].start)));
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
  alignas(32) uint8_t codes[kBlockRows];
};

inline void QuantizeBlockWeights(const float* weights, const uint8_t* scales, BlockWeights& out) {
  const uint8_t* zeros = scales + 2 * kBlockRows;
  alignas(32) float scaled[kBlockRows];
  __m256i largest = _mm256_setzero_si256();
  __m256 start = _mm256_setzero_ps();
  for (int64_t j = 0; j < kBlockRows; j += kLanes) {
    const __m256 weight = _mm256_loadu_ps(weights + j);
    const __m256i bits = MagnitudeBits(_mm256_mul_ps(weight, LoadHalves(scales + 2 * j)));
    _mm256_store_ps(scaled + j, _mm256_castsi256_ps(bits));
    largest = _mm256_max_epi32(largest, bits);
    start = _mm256_fmadd_ps(weight, LoadHalves(zeros + 2 * j), start);
  }
  const Quantizer quantizer(LargestLane(largest), kMostBlockWeight);
  out.step = quantizer.step;
  out.start = SumOfLanes(start);
  for (int64_t j = 0; j < kBlockRows; j += kLanes) {
    StoreUint8(out.codes + j, Codes(_mm256_load_ps(scaled + j), quantizer.inverse));
  }
}

/// kVectors vectors of 8 channels, the last of which has only 4 where kPart.
template <int kHeads, int kVectors, bool kPart>
inline void AddBlockColumns(const BlockWeights* weights, const uint8_t* codes, int64_t padded, int64_t channels,
                            Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_setzero_si256();
  }
  // 15 · 255 · 2 per product of pairs: the four of two steps fit 16 bits.
  for (int64_t i = 0; i < 16; i += 2) {
    __m256i words[kHeads][kVectors];
#pragma GCC unroll 2
    for (int step = 0; step < 2; ++step) {
      prefetcher.Ask();
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = codes + (i + step) * 4 * padded + 32 * v;
        const __m256i pairs = kPart ? _mm256_zextsi128_si256(LoadBytes16(p)) : LoadBytes(p);
        const __m256i low = _mm256_and_si256(pairs, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const __m256i w_low = Broadcast4(weights[h].codes + 8 * (i + step));
          const __m256i w_high = Broadcast4(weights[h].codes + 8 * (i + step) + 4);
          const __m256i word = _mm256_add_epi16(_mm256_maddubs_epi16(w_low, low), _mm256_maddubs_epi16(w_high, high));
          words[h][v] = step == 0 ? word : _mm256_add_epi16(words[h][v], word);
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[h][v] = _mm256_add_epi32(sums[h][v], _mm256_madd_epi16(words[h][v], ones));
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    alignas(32) int32_t totals[16];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(totals + 8 * v), sums[h][v]);
    }
    AddChannels(totals, channels, weights[h].step, weights[h].start, sum + h * sum_stride);
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
    AddBlockColumns<kHeads, 2, false>(codes, block + 4 * c, padded, Min(16, head_size - c), prefetcher, sum + c,
                                      sum_stride);
  }
  if (c + 8 <= padded) {
    AddBlockColumns<kHeads, 1, false>(codes, block + 4 * c, padded, Min(8, head_size - c), prefetcher, sum + c,
                                      sum_stride);
    c += 8;
  }
  if (c < padded) {
    AddBlockColumns<kHeads, 1, true>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
}

}  // namespace

namespace packed_avx2 {

#include "kernels/packed_two_heads_blocks.h"

}  // namespace packed_avx2
}  // namespace deltallm
