// The block kernels of instruction sets that take few heads at a time, over their own ScoreBlockHeads and
// AddBlockHeads: kMostHeads at once, asking for what lies ahead four times for every kChannelsPerAsk
// channels.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its namespace."
#endif

void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  ForEachPass<kMostHeads>(heads, ahead, 4 * Asks(PaddedSize(head_size)),
                          [&](auto pass, int64_t h, Prefetcher& prefetcher) {
                            ScoreBlockHeads<pass.kHeads>(query + h * query_stride, query_stride, block, head_size,
                                                         prefetcher, scores + h * score_stride, score_stride);
                          });
}

void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead& ahead) {
  ForEachPass<kMostHeads>(heads, ahead, 4 * Asks(PaddedSize(head_size)),
                          [&](auto pass, int64_t h, Prefetcher& prefetcher) {
                            AddBlockHeads<pass.kHeads>(weights + h * weight_stride, weight_stride, block, head_size,
                                                       prefetcher, sum + h * sum_stride, sum_stride);
                          });
}
