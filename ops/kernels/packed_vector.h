// What the packed kernels of every vector instruction set share. Each source file includes this into its anonymous
// namespace, so that no instantiation is shared between files compiled for different processors; for the same reason
// nothing here calls an inline function of the standard library.

#ifndef DELTALLM_PACKED_KERNELS_INSIDE
#error "Include this file from a kernel source, inside its anonymous namespace."
#endif

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

/// D' of docs/cache-format.md.
inline int64_t PaddedSize(int64_t head_size) { return (head_size + 3) / 4 * 4; }

inline int64_t TileBytes(int64_t padded) { return kTileRows * (padded + 4); }

/// As in packed_scalar.cc: magnitudes up to `largest`, given by its bits, to 0 … most. The bits of magnitudes order as
/// they do, with every NaN above infinity.
struct Quantizer {
  float step;
  float inverse;  ///< 0: all codes are 0

  Quantizer(uint32_t largest_bits, float most) {
    float largest;
    __builtin_memcpy(&largest, &largest_bits, sizeof largest);
    const bool finite = largest_bits < 0x7F800000u;
    const bool some = finite && largest >= kSmallestRange;
    step = some ? largest / most : finite ? 0.0f : __builtin_nanf("");
    inverse = some ? most / largest : 0.0f;
  }
};

/// Asks for the bytes ahead, a few lines at a time between the arithmetic: asked for at once, they would queue up and
/// then leave the memory idle. They go into the second-level cache; the hardware's own prefetching stops at pages. Of
/// several passes over the same rows, one per group of heads, each asks for its part.
class Prefetcher {
 public:
  /// Ask() will be called about `times` times.
  Prefetcher(const Ahead& ahead, int64_t pass, int64_t passes, int64_t times)
      : next_(ahead.data + ahead.bytes * pass / passes),
        end_(ahead.data + ahead.bytes * (pass + 1) / passes),
        step_((ahead.bytes / (passes * (times > 0 ? times : 1)) + 63) / 64 * 64) {}
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  ~Prefetcher() { AskUpTo(end_); }

  void Ask() { AskUpTo(end_ - next_ < step_ ? end_ : next_ + step_); }

 private:
  void AskUpTo(const uint8_t* stop) {
    for (; next_ < stop; next_ += 64) __builtin_prefetch(next_, 0, 2);
  }

  const uint8_t* next_;
  const uint8_t* end_;
  int64_t step_;
};
