// Packed tiles and blocks of random bytes for the tests of their kernels.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "kernels/half.h"
#include "kernels/packed_kernels.h"
#include "tests/harness.h"

namespace deltallm::test {

inline int64_t Padded(int64_t head_size) { return (head_size + 3) / 4 * 4; }

/// Random bytes that end where a page begins that nobody may read.
class GuardedBytes {
 public:
  GuardedBytes(Random& random, int64_t size) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (static_cast<size_t>(size) + page - 1) / page * page + page;
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<uint8_t*>(memory);
    mprotect(begin_ + mapped_ - page, page, PROT_NONE);
    data_ = begin_ + mapped_ - page - size;
    for (int64_t i = 0; i < size; ++i) data_[i] = static_cast<uint8_t>(random.Int(0, 255));
  }
  ~GuardedBytes() { munmap(begin_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  uint8_t* data() { return data_; }
  void SetHalf(int64_t byte, uint16_t half) { std::memcpy(data_ + byte, &half, sizeof half); }
  float HalfAt(int64_t byte) const {
    uint16_t half;
    std::memcpy(&half, data_ + byte, sizeof half);
    return HalfToFloat(half);
  }

 private:
  uint8_t* begin_;
  uint8_t* data_;
  size_t mapped_;
};

inline uint16_t RandomScale(Random& random) { return FloatToHalf(std::fabs(random.Normal()) * 0.02f + 1e-4f); }

inline void SetTileScales(Random& random, GuardedBytes& tiles, int64_t count, int64_t padded, bool ones) {
  for (int64_t j = 0; j < count * kTileRows; ++j) {
    const int64_t tile = j / kTileRows * kTileRows * (padded + 4);
    tiles.SetHalf(tile + kTileRows * padded + 2 * (j % kTileRows), ones ? FloatToHalf(1.0f) : RandomScale(random));
  }
}

/// A block's `groups` scales and zeros, those of pad channels 0.
inline void SetBlockScales(Random& random, GuardedBytes& block, int64_t padded, int64_t groups, int64_t used) {
  const int64_t scales = kBlockRows / 2 * padded;
  for (int64_t i = 0; i < groups; ++i) {
    block.SetHalf(scales + 2 * i, i < used ? RandomScale(random) : 0);
    block.SetHalf(scales + 2 * (groups + i), i < used ? FloatToHalf(random.Normal()) : 0);
  }
}

struct Query {
  Query(const Kernels& kernels, const std::vector<float>& rows, int64_t row_stride, int64_t heads, int64_t head_size)
      : stride((head_size + 63) / 64 * 64 + 64),
        value(static_cast<size_t>(heads * stride), 99),
        high(value.size(), 99),
        low(value.size(), 99),
        step(static_cast<size_t>(heads)),
        sum(static_cast<size_t>(heads)) {
    kernels.packed->quantize_query(rows.data(), row_stride, heads, head_size, Get());
  }
  QuantizedQuery Get() { return {value.data(), high.data(), low.data(), step.data(), sum.data(), stride}; }

  int64_t stride;
  std::vector<int16_t> value;
  std::vector<int8_t> high;
  std::vector<int8_t> low;
  std::vector<float> step;
  std::vector<int32_t> sum;
};

}  // namespace deltallm::test
