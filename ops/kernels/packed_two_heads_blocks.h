// The block kernels of instruction sets that take two heads at a time, over their own
// ScoreBlockHeads and AddBlockHeads: heads by twos, the last one alone.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its namespace."
#endif

void ScoreBlock(const float* query, int64_t query_stride, int64_t heads, const uint8_t* block, int64_t head_size,
                float* scores, int64_t score_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    Prefetcher prefetcher(ahead, h / kMostHeads, passes, padded);
    const float* q = query + h * query_stride;
    float* first = scores + h * score_stride;
    if (h + 2 <= heads) {
      ScoreBlockHeads<2>(q, query_stride, block, head_size, prefetcher, first, score_stride);
    } else {
      ScoreBlockHeads<1>(q, query_stride, block, head_size, prefetcher, first, score_stride);
    }
  }
}

void AddBlock(const float* weights, int64_t weight_stride, int64_t heads, const uint8_t* block, int64_t head_size,
              float* sum, int64_t sum_stride, const Ahead& ahead) {
  const int64_t padded = PaddedSize(head_size);
  const int64_t passes = (heads + kMostHeads - 1) / kMostHeads;
  for (int64_t h = 0; h < heads; h += kMostHeads) {
    Prefetcher prefetcher(ahead, h / kMostHeads, passes, padded);
    const float* weight = weights + h * weight_stride;
    float* first = sum + h * sum_stride;
    if (h + 2 <= heads) {
      AddBlockHeads<2>(weight, weight_stride, block, head_size, prefetcher, first, sum_stride);
    } else {
      AddBlockHeads<1>(weight, weight_stride, block, head_size, prefetcher, first, sum_stride);
    }
  }
}
