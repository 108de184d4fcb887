// int4 blocks with AVX2: codes stay bytes for vpmaddubsw, whose 16-bit sums are widened in time.
#include "kernels/packed_avx2.h"

namespace deltallm {
namespace {

/// sum + u · s by pairs, 16 bits each. The addition is written out as in packed_avx2_tiles.cc.
inline __m256i MultiplyAddBytes(__m256i sum, __m256i u, __m256i s) {
  const __m256i product = _mm256_maddubs_epi16(u, s);
  __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product));
  return sum;
}

/// sum + the pairs of words.
inline __m256i AddPairs(__m256i sum, __m256i words) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

inline __m256i LowNibbles(__m256i pairs) { return _mm256_and_si256(pairs, _mm256_set1_epi8(15)); }
inline __m256i HighNibbles(__m256i pairs) { return LowNibbles(_mm256_srli_epi16(pairs, 4)); }

// ---------------------------------------------------------------------------------------------------- quantisation

/// x · scale ≈ step · codes, and start = Σ x · zero.
template <typename Code, int64_t kMost>
struct Scaled {
  float step;
  float start;
  alignas(32) Code codes[kMost];
};
using BlockQuery = Scaled<int8_t, kMostPackedHeadSize>;
using BlockWeights = Scaled<uint8_t, kBlockRows>;

/// The low bytes of 32 numbers that fit a Code.
template <typename Code>
inline __m256i PackBytes(const __m256i (&x)[4]) {
  const __m256i first = _mm256_packs_epi32(x[0], x[1]);
  const __m256i second = _mm256_packs_epi32(x[2], x[3]);
  const __m256i bytes = Code(-1) < 0 ? _mm256_packs_epi16(first, second) : _mm256_packus_epi16(first, second);
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/// Codes up to ±most, those of unsigned type of magnitudes. Codes behind n are 0, up to a multiple of 32.
template <int kHeads, typename Code, int64_t kMost>
inline void QuantizeScaled(const float* x, int64_t stride, const uint8_t* scales, const uint8_t* zeros, int64_t n,
                           float most, Scaled<Code, kMost> (&out)[kHeads]) {
  constexpr bool kSigned = Code(-1) < 0;
  alignas(32) float scaled[kHeads][kMost];
  __m256i largest[kHeads];
  __m256 start[kHeads];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    largest[h] = _mm256_setzero_si256();
    start[h] = _mm256_setzero_ps();
  }
  // The heads take turns: each waits for its own sums.
  const auto multiply = [&](int64_t c, bool whole) __attribute__((always_inline)) {
    // Behind the last scale and the last zero lie other parts of the block, which must not count.
    const __m256i there = MaskOfFirst(n - c);
    __m256 scale = LoadHalves(scales + 2 * c);
    __m256 zero = LoadHalves(zeros + 2 * c);
    if (!whole) {
      scale = _mm256_and_ps(scale, _mm256_castsi256_ps(there));
      zero = _mm256_and_ps(zero, _mm256_castsi256_ps(there));
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256 entry = whole ? _mm256_loadu_ps(x + h * stride + c) : _mm256_maskload_ps(x + h * stride + c, there);
      const __m256 product = _mm256_mul_ps(entry, scale);
      const __m256i magnitude = MagnitudeBits(product);
      _mm256_store_ps(scaled[h] + c, kSigned ? product : _mm256_castsi256_ps(magnitude));
      largest[h] = _mm256_max_epi32(largest[h], magnitude);
      start[h] = _mm256_fmadd_ps(entry, zero, start[h]);
    }
  };
  if (n % 32 != 0) {
    for (int h = 0; h < kHeads; ++h) __builtin_memset(scaled[h] + n / 32 * 32, 0, 32 * sizeof(float));
  }
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) multiply(c, true);
  if (n % kLanes != 0) multiply(c, false);
  const Quantizers quantizers(LargestLanes(largest), most);
  alignas(16) float starts[kMostHeads];
  _mm_store_ps(starts, SumsOfLanes(start));
  for (int h = 0; h < kHeads; ++h) {
    out[h].step = quantizers.step[h];
    out[h].start = starts[h];
    const __m256 inverse = _mm256_set1_ps(quantizers.inverse[h]);
    for (c = 0; c < n; c += 32) {
      __m256i codes[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) codes[i] = Codes(_mm256_load_ps(scaled[h] + c + kLanes * i), inverse);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out[h].codes + c), PackBytes<Code>(codes));
    }
  }
}

// ---------------------------------------------------------------------------------------------- int4: scores of blocks

/// Eight rows of low nibbles, and the eight of high nibbles 16 rows behind them.
template <int kHeads>
inline void ScoreBlockRows(const BlockQuery* query, const uint8_t* codes, int64_t padded, Prefetcher& prefetcher,
                           float* scores, int64_t score_stride) {
  __m256i sums[kHeads][2];
  __m256i words[kHeads][2];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    sums[h][0] = sums[h][1] = words[h][0] = words[h][1] = _mm256_setzero_si256();
  }
  const auto add = [&](int64_t c) __attribute__((always_inline)) {
    const __m256i pairs = LoadBytes(codes + c * 16);
    const __m256i low = LowNibbles(pairs);
    const __m256i high = HighNibbles(pairs);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256i q = Broadcast4(query[h].codes + c);
      words[h][0] = MultiplyAddBytes(words[h][0], low, q);
      words[h][1] = MultiplyAddBytes(words[h][1], high, q);
    }
  };
  const auto widen = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        sums[h][i] = AddPairs(sums[h][i], words[h][i]);
        words[h][i] = _mm256_setzero_si256();
      }
    }
  };
  int64_t c = 0;
  // 15 · 127 · 2 per product of pairs: eight of them fit 16 bits.
  for (; c + 32 <= padded; c += 32) {
    prefetcher.Ask();
#pragma GCC unroll 8
    for (int64_t i = 0; i < 32; i += 4) add(c + i);
    widen();
  }
  if (c < padded) {
    for (; c < padded; c += 4) add(c);
    widen();
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    const __m256 step = _mm256_set1_ps(query[h].step);
    const __m256 start = _mm256_set1_ps(query[h].start);
    float* row = scores + h * score_stride;
    _mm256_storeu_ps(row, _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(sums[h][0]), start));
    _mm256_storeu_ps(row + 16, _mm256_fmadd_ps(step, _mm256_cvtepi32_ps(sums[h][1]), start));
  }
}

template <int kHeads>
inline void ScoreBlockHeads(const float* query, int64_t query_stride, const uint8_t* block, int64_t head_size,
                            Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  const int64_t padded = PaddedSize(head_size);
  const uint8_t* scales = block + kBlockRows / 2 * padded;
  BlockQuery codes[kHeads];
  QuantizeScaled(query, query_stride, scales, scales + 2 * padded, head_size, kMostBlockQuery, codes);
  for (int64_t row = 0; row < kBlockRows; row += row % 16 == 0 ? 8 : 24) {
    ScoreBlockRows<kHeads>(codes, block + row / 32 * padded * 16 + row % 32 * 4, padded, prefetcher, scores + row,
                           score_stride);
  }
}

// --------------------------------------------------------------------------------------- int4: sums of value blocks

/// kVectors vectors of 8 channels, the last of which has only 4 where kPart; `channels` of them are to be added to.
template <int kHeads, int kVectors, bool kPart>
inline void AddBlockColumns(const BlockWeights* weights, const uint8_t* codes, int64_t padded, int64_t channels,
                            Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  // 255 · 15 · 2 per product of pairs: the eight of four steps fit 16 bits without a sign. Their sums begin as low as
  // signed words can, which is made good in advance in the sums of those.
  constexpr int64_t kStepsPerSum = 4;
  __m256i sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm256_set1_epi32(16 / kStepsPerSum * 2 * 32768);
  }
  for (int64_t begin = 0; begin < 16; begin += kStepsPerSum) {
    __m256i words[kHeads][kVectors];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) words[h][v] = _mm256_set1_epi16(-32768);
    }
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int64_t i = begin; i < begin + kStepsPerSum; ++i) {
      __m256i pairs[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = codes + i * 4 * padded + 32 * v;
        pairs[v] = kPart ? _mm256_zextsi128_si256(LoadBytes16(p)) : LoadBytes(p);
      }
#pragma GCC unroll 2
      for (int nibble = 0; nibble < 2; ++nibble) {
        __m256i bytes[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) bytes[v] = nibble ? HighNibbles(pairs[v]) : LowNibbles(pairs[v]);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) {
          const __m256i w = Broadcast4(weights[h].codes + 8 * i + 4 * nibble);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) words[h][v] = MultiplyAddBytes(words[h][v], w, bytes[v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[h][v] = AddPairs(sums[h][v], words[h][v]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      AddChannels(sums[h][v], weights[h].step, weights[h].start, channels - kLanes * v,
                  sum + h * sum_stride + kLanes * v);
    }
  }
}

template <int kHeads>
inline void AddBlockHeads(const float* weights, int64_t weight_stride, const uint8_t* block, int64_t head_size,
                          Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const int64_t padded = PaddedSize(head_size);
  const uint8_t* scales = block + kBlockRows / 2 * padded;
  BlockWeights codes[kHeads];
  QuantizeScaled(weights, weight_stride, scales, scales + 2 * kBlockRows, kBlockRows, kMostBlockWeight, codes);
  int64_t c = 0;
  for (; c + 16 <= padded; c += 16) {
    AddBlockColumns<kHeads, 2, false>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
  if (c + 8 <= padded) {
    AddBlockColumns<kHeads, 1, false>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
    c += 8;
  }
  if (c < padded) {
    AddBlockColumns<kHeads, 1, true>(codes, block + 4 * c, padded, head_size - c, prefetcher, sum + c, sum_stride);
  }
}

}  // namespace

namespace packed_avx2 {

#include "kernels/packed_block_passes.h"

}  // namespace packed_avx2
}  // namespace deltallm
