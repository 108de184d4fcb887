// How the query heads of a group are split over kernels that are compiled for a number of heads.
// Included behind packed_vector.h and in the same way, behind
//   kChannelsPerAsk: a pass over a tile asks the Prefetcher about once for so many channels.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its anonymous namespace."
#endif

inline int64_t Asks(int64_t channels) { return (channels + kChannelsPerAsk - 1) / kChannelsPerAsk; }

/// A number of heads as a type.
template <int kCount>
struct Pass {
  static constexpr int kHeads = kCount;
};

template <int kMost, typename Body>
inline void RunPass(int64_t heads, const Body& body) {
  if constexpr (kMost > 1) {
    if (heads < kMost) {
      RunPass<kMost - 1>(heads, body);
      return;
    }
  }
  body(Pass<kMost>());
}

/// Calls body(Pass<n>(), first head, prefetcher) for the heads by kMost, the last ones with what is left. Every pass
/// will ask for what lies ahead about `times` times.
template <int kMost, typename Body>
inline void ForEachPass(int64_t heads, const Ahead& ahead, int64_t times, const Body& body) {
  const int64_t passes = (heads + kMost - 1) / kMost;
  for (int64_t h = 0; h < heads; h += kMost) {
    Prefetcher prefetcher(ahead, h / kMost, passes, times);
    RunPass<kMost>(heads - h, [&](auto pass) { body(pass, h, prefetcher); });
  }
}
