// The tile kernels of instruction sets that take two heads at a time, over their own
// ScoreTile and AddTileHeads: heads by twos, the last one alone.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its namespace."
#endif

void ScoreTiles(const QuantizedQuery& query, int64_t heads, const uint8_t* tiles, int64_t count, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* tile = tiles + i * TileBytes(padded);
    for (int64_t h = 0; h < heads; h += kMostHeads) {
      Prefetcher prefetcher(ahead.Part(i, i + 1, count), h / kMostHeads, passes, padded / 4);
      float* first = scores + h * score_stride + i * kTileRows;
      if (h + 2 <= heads) {
        ScoreTile<2>(query, h, tile, padded, prefetcher, first, score_stride);
      } else {
        ScoreTile<1>(query, h, tile, padded, prefetcher, first, score_stride);
      }
    }
  }
}

void AddTiles(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* tiles, int64_t count,
              int64_t head_size, float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    Prefetcher prefetcher(ahead, h / kMostHeads, passes, count * (padded / 4));
    const float* weight = weights + h * weight_stride;
    float* first = sum + h * sum_stride;
    if (h + 2 <= heads) {
      AddTileHeads<2>(weight, weight_stride, tiles, count, head_size, prefetcher, first, sum_stride);
    } else {
      AddTileHeads<1>(weight, weight_stride, tiles, count, head_size, prefetcher, first, sum_stride);
    }
  }
}
