// int4 blocks with AVX-512 VNNI: queries and weights of 8 bits, requantised for every block.
#include "kernels/packed_avx512_vnni.h"

namespace deltallm {
namespace {

// ---------------------------------------------------------------------------------------------- int4: scores of blocks

/// The queries of a group of heads in a block's units: query[c] · scale[c] ≈ step · code[c].
template <int kHeads>
struct BlockQuery {
  alignas(16) float step[kMostHeads];
  alignas(16) float start[kMostHeads];
  alignas(64) int8_t codes[kHeads][kMostPackedHeadSize];
};

template <int kHeads>
inline void QuantizeBlockQuery(const float* query, int64_t query_stride, const uint8_t* scales, int64_t head_size,
                               Prefetcher& prefetcher, BlockQuery<kHeads>& out) {
  const uint8_t* zeros = scales + 2 * PaddedSize(head_size);
  __m512i largest[kMostHeads] = {};
  __m512 start[kMostHeads] = {};
  for (int64_t c = 0; c < head_size; c += kLanes) {
    const __mmask16 mask = Mask(Min(kLanes, head_size - c));
    const __m512 scale = LoadHalvesPart(scales + 2 * c, mask);
    const __m512 zero = LoadHalvesPart(zeros + 2 * c, mask);
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m512 q = _mm512_maskz_loadu_ps(mask, query + h * query_stride + c);
      largest[h] = _mm512_max_epi32(largest[h], MagnitudeBits(_mm512_mul_ps(q, scale)));
      start[h] = _mm512_fmadd_ps(q, zero, start[h]);
    }
  }
  const Quantizers quantizers(LargestLanes(largest), kMostBlockQuery);
  _mm_store_ps(out.step, _mm_load_ps(quantizers.step));
  _mm_store_ps(out.start, SumsOfLanes(start));
  for (int64_t c = 0; c < head_size; c += kLanes) {
    const __mmask16 mask = Mask(Min(kLanes, head_size - c));
    const __m512 scale = LoadHalvesPart(scales + 2 * c, mask);
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m512 q = _mm512_maskz_loadu_ps(mask, query + h * query_stride + c);
      const __m512i code = Codes(_mm512_mul_ps(q, scale), quantizers.inverse[h]);
      _mm_store_si128(reinterpret_cast<__m128i*>(out.codes[h] + c), _mm512_cvtepi32_epi8(code));
    }
  }
}

/// kQuarters of the block's quarters, 32 rows each.
template <int kHeads, int kQuarters>
inline void ScoreBlockQuarters(const BlockQuery<kHeads>& query, const uint8_t* codes, int64_t padded,
                               Prefetcher& prefetcher, float* scores, int64_t score_stride) {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i sums[kHeads][2 * kQuarters];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int z = 0; z < 2 * kQuarters; ++z) sums[h][z] = _mm512_setzero_si512();
  }
  const auto add = [&](int64_t c) __attribute__((always_inline)) {
    __m512i rows[2 * kQuarters];
#pragma GCC unroll 8
    for (int z = 0; z < kQuarters; ++z) {
      // The products with whole bytes, low + 16 · high, save a shift; they are taken apart at the end.
      rows[2 * z + 1] = LoadBytes(codes + (z * padded + c) * 16);
      rows[2 * z] = _mm512_and_si512(rows[2 * z + 1], nibble);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const __m512i q = Broadcast(query.codes[h] + c);
#pragma GCC unroll 8
      for (int z = 0; z < 2 * kQuarters; ++z) sums[h][z] = DotAdd(sums[h][z], rows[z], q);
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
  for (int h = 0; h < kHeads; ++h) {
    const __m512 step = _mm512_set1_ps(query.step[h]);
    const __m512 start = _mm512_set1_ps(query.start[h]);
#pragma GCC unroll 8
    for (int z = 0; z < 2 * kQuarters; z += 2) {
      const __m512i high = _mm512_srai_epi32(_mm512_sub_epi32(sums[h][z + 1], sums[h][z]), 4);
      float* row = scores + h * score_stride + z * kLanes;
      _mm512_storeu_ps(row, _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sums[h][z]), start));
      _mm512_storeu_ps(row + kLanes, _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(high), start));
    }
  }
}

template <int kHeads, int kQuarters>
inline void ScoreBlockHeads(const float* query, int64_t query_stride, const uint8_t* block, int64_t head_size,
                            int64_t pass, int64_t passes, float* scores, int64_t score_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  Prefetcher prefetcher(ahead, pass, passes, 2 * ((head_size + kLanes - 1) / kLanes) + 4 / kQuarters * (padded / 16));
  BlockQuery<kHeads> codes;
  QuantizeBlockQuery<kHeads>(query, query_stride, block + kBlockRows / 2 * padded, head_size, prefetcher, codes);
  for (int z = 0; z < 4; z += kQuarters) {
    ScoreBlockQuarters<kHeads, kQuarters>(codes, block + z * padded * 16, padded, prefetcher, scores + 32 * z,
                                          score_stride);
  }
}

// --------------------------------------------------------------------------------------- int4: sums of value blocks

template <int kHeads>
struct BlockWeights {
  alignas(16) float step[kMostHeads];
  alignas(16) float start[kMostHeads];
  alignas(64) uint8_t codes[kHeads][kBlockRows];
};

template <int kHeads>
inline void QuantizeBlockWeights(const float* weights, int64_t weight_stride, const uint8_t* scales,
                                 Prefetcher& prefetcher, BlockWeights<kHeads>& out) {
  const uint8_t* zeros = scales + 2 * kBlockRows;
  __m512 scale[8];
  __m512i largest[kMostHeads] = {};
  __m512 start[kMostHeads] = {};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    scale[i] = LoadHalves(scales + 2 * i * kLanes);
    const __m512 zero = LoadHalves(zeros + 2 * i * kLanes);
    prefetcher.Ask();
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m512 weight = _mm512_loadu_ps(weights + h * weight_stride + i * kLanes);
      largest[h] = _mm512_max_epu32(largest[h], _mm512_castps_si512(_mm512_mul_ps(weight, scale[i])));
      start[h] = _mm512_fmadd_ps(weight, zero, start[h]);
    }
  }
  const Quantizers quantizers(LargestLanes(largest), kMostBlockWeight);
  _mm_store_ps(out.step, _mm_load_ps(quantizers.step));
  _mm_store_ps(out.start, SumsOfLanes(start));
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
    prefetcher.Ask();
    __m512i words[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      __m512i value[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        // Computed again: sixteen of them are too many to keep.
        const __m512 weight = _mm512_loadu_ps(weights + h * weight_stride + (2 * k + i) * kLanes);
        value[i] = Codes(_mm512_mul_ps(weight, scale[2 * k + i]), quantizers.inverse[h]);
      }
      words[k] = _mm512_packus_epi32(value[0], value[1]);
    }
    _mm512_store_si512(out.codes[h], PackBytes(words[0], words[1]));
    _mm512_store_si512(out.codes[h] + 64, PackBytes(words[2], words[3]));
  }
}

template <int kHeads, int kVectors, bool kPart>
inline void AddBlockColumns(const BlockWeights<kHeads>& weights, const uint8_t* codes, int64_t padded, __mmask16 load,
                            __mmask16 store, Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i sums[kHeads][kVectors];
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[h][v] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < 16; ++i) {
    __m512i low[kVectors];
    __m512i high[kVectors];
    prefetcher.Ask();
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* p = codes + i * 4 * padded + v * 64;
      const __m512i pairs = kPart ? _mm512_maskz_loadu_epi32(load, p) : LoadBytes(p);
      low[v] = _mm512_and_si512(pairs, nibble);
      high[v] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const __m512i w_low = Broadcast(weights.codes[h] + 8 * i);
      const __m512i w_high = Broadcast(weights.codes[h] + 8 * i + 4);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[h][v] = DotAdd(sums[h][v], w_low, low[v]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[h][v] = DotAdd(sums[h][v], w_high, high[v]);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kHeads; ++h) {
    const __m512 step = _mm512_set1_ps(weights.step[h]);
    const __m512 start = _mm512_set1_ps(weights.start[h]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* p = sum + h * sum_stride + v * kLanes;
      const __m512 before = kPart ? _mm512_maskz_loadu_ps(store, p) : _mm512_loadu_ps(p);
      const __m512 after = _mm512_add_ps(before, _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sums[h][v]), start));
      if constexpr (kPart) {
        _mm512_mask_storeu_ps(p, store, after);
      } else {
        _mm512_storeu_ps(p, after);
      }
    }
  }
}

template <int kHeads, int kVectors>
inline int64_t AddBlockWhole(const BlockWeights<kHeads>& weights, const uint8_t* block, int64_t head_size, int64_t c,
                             Prefetcher& prefetcher, float* sum, int64_t sum_stride) {
  for (; c + kVectors * kLanes <= head_size; c += kVectors * kLanes) {
    AddBlockColumns<kHeads, kVectors, false>(weights, block + 4 * c, PaddedSize(head_size), 0, 0, prefetcher, sum + c,
                                             sum_stride);
  }
  if constexpr (kVectors == 1) {
    return c;
  } else {
    return AddBlockWhole<kHeads, kVectors / 2>(weights, block, head_size, c, prefetcher, sum, sum_stride);
  }
}

template <int kHeads, int kVectors>
inline void AddBlockHeads(const float* weights, int64_t weight_stride, const uint8_t* block, int64_t head_size,
                          int64_t pass, int64_t passes, float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  constexpr int64_t kChannels = kVectors * kLanes;
  Prefetcher prefetcher(ahead, pass, passes, 8 + kHeads + 16 * ((head_size + kChannels - 1) / kChannels));
  BlockWeights<kHeads> codes;
  QuantizeBlockWeights<kHeads>(weights, weight_stride, block + kBlockRows / 2 * padded, prefetcher, codes);
  const int64_t c = AddBlockWhole<kHeads, kVectors>(codes, block, head_size, 0, prefetcher, sum, sum_stride);
  if (c < head_size) {
    AddBlockColumns<kHeads, 1, true>(codes, block + 4 * c, padded, Mask(padded - c), Mask(head_size - c), prefetcher,
                                     sum + c, sum_stride);
  }
}

}  // namespace

namespace packed_avx512_vnni {

void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    const float* q = query + h * query_stride;
    float* first = scores + h * score_stride;
    switch (Min(kMostHeads, heads - h)) {
      case 4:
        ScoreBlockHeads<4, 1>(q, query_stride, block, head_size, h / kMostHeads, passes, first, score_stride, ahead);
        break;
      case 3:
        ScoreBlockHeads<3, 2>(q, query_stride, block, head_size, h / kMostHeads, passes, first, score_stride, ahead);
        break;
      case 2:
        ScoreBlockHeads<2, 4>(q, query_stride, block, head_size, h / kMostHeads, passes, first, score_stride, ahead);
        break;
      default:
        ScoreBlockHeads<1, 4>(q, query_stride, block, head_size, h / kMostHeads, passes, first, score_stride, ahead);
        break;
    }
  }
}

void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    const float* weight = weights + h * weight_stride;
    float* first = sum + h * sum_stride;
    switch (Min(kMostHeads, heads - h)) {
      case 4:
        AddBlockHeads<4, 4>(weight, weight_stride, block, head_size, h / kMostHeads, passes, first, sum_stride, ahead);
        break;
      case 3:
        AddBlockHeads<3, 4>(weight, weight_stride, block, head_size, h / kMostHeads, passes, first, sum_stride, ahead);
        break;
      case 2:
        AddBlockHeads<2, 8>(weight, weight_stride, block, head_size, h / kMostHeads, passes, first, sum_stride, ahead);
        break;
      default:
        AddBlockHeads<1, 8>(weight, weight_stride, block, head_size, h / kMostHeads, passes, first, sum_stride, ahead);
        break;
    }
  }
}

}  // namespace packed_avx512_vnni
}  // namespace deltallm
