#include "bench/roofline.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <new>

#include "core/cpu_features.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace deltallm::bench {

double ThreadNanoseconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

HugeMemory::HugeMemory(int64_t bytes) {
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const size_t size = (static_cast<size_t>(bytes) + 2 * kHugePage) / kHugePage * kHugePage;
  size_ = size + kHugePage;
  mapped_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(mapped_) + kHugePage - 1) & ~(kHugePage - 1));
#ifdef MADV_HUGEPAGE
  madvise(data_, size, MADV_HUGEPAGE);
#endif
  std::fill_n(data_, size, uint8_t{0});
}

HugeMemory& HugeMemory::operator=(HugeMemory&& other) noexcept {
  std::swap(mapped_, other.mapped_);
  std::swap(size_, other.size_);
  std::swap(data_, other.data_);
  return *this;
}

HugeMemory::~HugeMemory() {
  if (mapped_ != nullptr) munmap(mapped_, size_);
}

double StreamingBandwidth() {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const HugeMemory memory(kBytes);
  const uint8_t* data = memory.data();
  double best = 0.0;
  for (int trial = 0; trial < 5; ++trial) {
    const double begin = ThreadNanoseconds();
    uint64_t sum = 0;
    for (int64_t i = 0; i < kBytes; i += 64) {
      __builtin_prefetch(data + i + 8192, 0, 2);
      uint64_t word;
      __builtin_memcpy(&word, data + i, sizeof word);
      sum += word;
    }
    // The sum is 0, which the compiler cannot know.
    const double time = ThreadNanoseconds() - begin + static_cast<double>(sum);
    best = std::max(best, static_cast<double>(kBytes) / time);
  }
  return best;
}

#ifdef __x86_64__
__attribute__((target("avx512f,avx512vnni"))) static void RunDots(int64_t count) {
  __m512i a, b, c, d, e, f, g, h;
  a = b = c = d = e = f = g = h = _mm512_set1_epi32(0x01010101);
  // More than the instruction's latency needs.
  for (int64_t i = 0; i < count; ++i) {
    __asm__ volatile(
        "vpdpbusd %0, %0, %0\n vpdpbusd %1, %1, %1\n vpdpbusd %2, %2, %2\n vpdpbusd %3, %3, %3\n"
        "vpdpbusd %4, %4, %4\n vpdpbusd %5, %5, %5\n vpdpbusd %6, %6, %6\n vpdpbusd %7, %7, %7\n"
        : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h));
  }
}
#endif

double VnniPeak() {
#ifdef __x86_64__
  if (!Cpu().avx512_vnni) return 0.0;
  constexpr int64_t kCount = 2000000;
  double best = 0.0;
  for (int trial = 0; trial < 5; ++trial) {
    const double begin = ThreadNanoseconds();
    RunDots(kCount);
    best = std::max(best, 8.0 * 128.0 * kCount / (ThreadNanoseconds() - begin));
  }
  return best;
#else
  return 0.0;
#endif
}

}  // namespace deltallm::bench
