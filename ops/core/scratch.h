// Working memory of one task, kept per thread so that a decode step allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

namespace deltallm {

/// Hands out float rows from one thread-local block, one after the other. At most one lives on a thread at a time.
class Scratch {
 public:
  /// `floats` is the sum of all later Take calls, each rounded up by RoundUp. Throws std::bad_alloc.
  explicit Scratch(int64_t floats);

  /// The next `count` floats, aligned to a cache line, with no particular content.
  float* Take(int64_t count);

  /// What Take(count) uses up.
  static int64_t RoundUp(int64_t count) { return (count + 15) / 16 * 16; }

 private:
  float* next_;
};

/// Memory of one call, kept by the thread that made it for its next call, unless it is large: then a call takes so long
/// that allocating does not matter. One that begins while another one of the thread lives takes memory of its own.
class KeptFloats {
 public:
  static constexpr int64_t kMostKept = 1 << 20;

  /// Throws std::bad_alloc.
  explicit KeptFloats(int64_t count);
  ~KeptFloats();
  KeptFloats(const KeptFloats&) = delete;
  KeptFloats& operator=(const KeptFloats&) = delete;

  /// With no particular content.
  float* data() { return floats_.data(); }

 private:
  std::vector<float> floats_;
};

}  // namespace deltallm
