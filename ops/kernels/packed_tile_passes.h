// The tile kernels of instruction sets that take few heads at a time, over their own ScoreTileHeads and AddTileHeads:
// kMostHeads at once, asking for what lies ahead every kChannelsPerAsk channels.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its namespace."
#endif

void ScoreTiles(const QuantizedQuery& query, int64_t heads, const uint8_t* tiles, int64_t count, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  // Half of a first-level cache: what one pass reads is still there for the next.
  constexpr int64_t kStretchBytes = 16384;
  const int64_t padded = PaddedSize(head_size);
  const int64_t fitting = kStretchBytes / TileBytes(padded);
  const int64_t stretch = heads <= kMostHeads ? count : fitting > 1 ? fitting : 1;
  for (int64_t i = 0; i < count; i += stretch) {
    const int64_t n = Min(stretch, count - i);
    ForEachPass<kMostHeads>(
        heads, ahead.Part(i, i + n, count), n * Asks(padded), [&](auto pass, int64_t h, Prefetcher& prefetcher) {
          ScoreTileHeads<pass.kHeads>(query, h, tiles + i * TileBytes(padded), n, padded, prefetcher,
                                      scores + h * score_stride + i * kTileRows, score_stride);
        });
  }
}

void AddTiles(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* tiles, int64_t count,
              int64_t head_size, float* sum, int64_t sum_stride, const Ahead& ahead) {
  ForEachPass<kMostHeads>(heads, ahead, count * Asks(PaddedSize(head_size)),
                          [&](auto pass, int64_t h, Prefetcher& prefetcher) {
                            AddTileHeads<pass.kHeads>(weights + h * weight_stride, weight_stride, tiles, count,
                                                      head_size, prefetcher, sum + h * sum_stride, sum_stride);
                          });
}
