// What one thread of this machine can do at most: the lines under which the kernels' times are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace deltallm::bench {

/// Processor time of the calling thread in nanoseconds: on a busy machine it holds still where the clock runs on.
double ThreadNanoseconds();

/// Zeroed memory, in huge pages where the system grants them, with room to prefetch behind it.
class HugeMemory {
 public:
  HugeMemory() = default;
  explicit HugeMemory(int64_t bytes);  ///< Throws std::bad_alloc.
  HugeMemory(HugeMemory&& other) noexcept { *this = std::move(other); }
  HugeMemory& operator=(HugeMemory&& other) noexcept;
  ~HugeMemory();

  uint8_t* data() const { return data_; }

 private:
  void* mapped_ = nullptr;
  size_t size_ = 0;
  uint8_t* data_ = nullptr;
};

/// Bytes per nanosecond that reading a large buffer once gives.
double StreamingBandwidth();

/// 8-bit multiplications and additions per nanosecond of vpdpbusd; 0 where the processor lacks it.
double VnniPeak();

}  // namespace deltallm::bench
