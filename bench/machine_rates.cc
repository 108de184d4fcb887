// What this machine can do at most: bytes read from memory and multiply-adds in registers, one JSON object on stdout.
//
//     g++ -O3 -march=native -pthread bench/machine_rates.cc && ./a.out 1 2
//
// One set of rates per number of threads; a rate the compiler's target lacks is null. The best of some repetitions, in CPU
// time of the threads: what other processes take away is no property of the machine.
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr size_t kBytes = size_t{1} << 29;  // far beyond any cache, per thread
constexpr long kLoops = 2'000'000;
constexpr int kRepetitions = 9;

double Now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Work per second of `threads` threads that each do `work`: all start together, the slowest one counts.
double Rate(int threads, double work, const std::function<void(int)>& run) {
  std::vector<double> rates;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    std::atomic<int> ready{0};
    std::vector<double> seconds(threads);
    std::vector<std::thread> pool;
    for (int thread = 0; thread < threads; ++thread) {
      pool.emplace_back([&, thread] {
        ++ready;
        while (ready < threads) {
        }
        const double begin = Now();
        run(thread);
        seconds[thread] = Now() - begin;
      });
    }
    for (std::thread& thread : pool) thread.join();
    rates.push_back(work * threads / *std::max_element(seconds.begin(), seconds.end()));
  }
  return *std::max_element(rates.begin(), rates.end());
}

typedef uint64_t Line __attribute__((vector_size(64)));

/// Sums a buffer. The software prefetch helps some machines and slows others: both are tried.
template <bool kPrefetch>
uint64_t Sum(const Line* data, size_t lines) {
  Line sums[8] = {};
  for (size_t i = 0; i + 8 <= lines; i += 8) {
    for (size_t j = 0; j < 8; ++j) {
      if (kPrefetch) __builtin_prefetch(data + i + j + 128, 0, 2);
      sums[j] += data[i + j];
    }
  }
  uint64_t total = 0;
  for (const Line& sum : sums) {
    for (int j = 0; j < 8; ++j) total += sum[j];
  }
  return total;
}

double ReadBandwidth(int threads) {
  std::vector<Line*> buffers;
  for (int thread = 0; thread < threads; ++thread) {
    void* memory = nullptr;
    if (posix_memalign(&memory, size_t{2} << 20, kBytes) != 0) std::exit(1);
    madvise(memory, kBytes, MADV_HUGEPAGE);
    std::fill_n(static_cast<char*>(memory), kBytes, 1);
    buffers.push_back(static_cast<Line*>(memory));
  }
  std::atomic<uint64_t> used{0};  // so that the sums are computed
  const size_t lines = kBytes / sizeof(Line);
  const double plain = Rate(threads, kBytes, [&](int thread) { used += Sum<false>(buffers[thread], lines); });
  const double ahead = Rate(threads, kBytes, [&](int thread) { used += Sum<true>(buffers[thread], lines); });
  for (Line* buffer : buffers) std::free(buffer);
  return used == 1 ? 0 : std::max(plain, ahead);
}

// Twelve independent chains hide the latency of any multiply-add; assembly, because compilers spill such loops.
#define CHAINS(op, v)                                                                                               \
  op " %%" v "14,%%" v "15,%%" v "0\n" op " %%" v "14,%%" v "15,%%" v "1\n" op " %%" v "14,%%" v "15,%%" v "2\n"    \
  op " %%" v "14,%%" v "15,%%" v "3\n" op " %%" v "14,%%" v "15,%%" v "4\n" op " %%" v "14,%%" v "15,%%" v "5\n"    \
  op " %%" v "14,%%" v "15,%%" v "6\n" op " %%" v "14,%%" v "15,%%" v "7\n" op " %%" v "14,%%" v "15,%%" v "8\n"    \
  op " %%" v "14,%%" v "15,%%" v "9\n" op " %%" v "14,%%" v "15,%%" v "10\n" op " %%" v "14,%%" v "15,%%" v "11\n"
#define CLOBBERS                                                                                                    \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm14", "xmm15"
// Zeros in all operands: denormals and NaN would slow some processors down.
#define PEAK(name, op, v, zero)                                                                                     \
  void name(long n) {                                                                                               \
    __asm__ volatile(zero "1:\n" CHAINS(op, v) "dec %0\njnz 1b" : "+r"(n)::CLOBBERS);                              \
  }
#define ZERO(v)                                                                                                     \
  "vpxor %%xmm14,%%xmm14,%%xmm14\nvpxor %%xmm15,%%xmm15,%%xmm15\nvpxor %%xmm0,%%xmm0,%%xmm0\n"                      \
  "vpxor %%xmm1,%%xmm1,%%xmm1\nvpxor %%xmm2,%%xmm2,%%xmm2\nvpxor %%xmm3,%%xmm3,%%xmm3\n"                            \
  "vpxor %%xmm4,%%xmm4,%%xmm4\nvpxor %%xmm5,%%xmm5,%%xmm5\nvpxor %%xmm6,%%xmm6,%%xmm6\n"                            \
  "vpxor %%xmm7,%%xmm7,%%xmm7\nvpxor %%xmm8,%%xmm8,%%xmm8\nvpxor %%xmm9,%%xmm9,%%xmm9\n"                            \
  "vpxor %%xmm10,%%xmm10,%%xmm10\nvpxor %%xmm11,%%xmm11,%%xmm11\n"

struct Peak {
  const char* name;
  double operations;  ///< of one loop, a multiply-add counting as two
  void (*run)(long);
};

#if defined(__AVX512F__)
PEAK(Float32, "vfmadd231ps", "zmm", ZERO("zmm"))
constexpr double kLanes = 16;
#elif defined(__FMA__)
PEAK(Float32, "vfmadd231ps", "ymm", ZERO("ymm"))
constexpr double kLanes = 8;
#else
void Float32(long n) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[12] = {};
  Vector factor = {0, 0, 0, 0};
  for (long i = 0; i < n; ++i) {
    for (Vector& sum : sums) {
      sum = sum * factor + factor;
      __asm__ volatile("" : "+w"(sum));
    }
  }
}
constexpr double kLanes = 4;
#endif
#if defined(__AVX512BF16__)
PEAK(Bfloat16, "vdpbf16ps", "zmm", ZERO("zmm"))
constexpr Peak kBfloat16{"bfloat16", 12 * 64, Bfloat16};
#else
constexpr Peak kBfloat16{"bfloat16", 0, nullptr};
#endif
#if defined(__AVX512VNNI__)
PEAK(Int8, "vpdpbusd", "zmm", ZERO("zmm"))
constexpr Peak kInt8{"int8", 12 * 128, Int8};
#elif defined(__AVX2__)
PEAK(Int8, "vpmaddubsw", "ymm", ZERO("ymm"))
constexpr Peak kInt8{"int8", 12 * 64, Int8};
#else
constexpr Peak kInt8{"int8", 0, nullptr};
#endif
constexpr Peak kFloat32{"float32", 12 * 2 * kLanes, Float32};

}  // namespace

int main(int count, char** arguments) {
  std::printf("{");
  for (int i = 1; i < count; ++i) {
    const int threads = std::atoi(arguments[i]);
    if (threads < 1) return 2;
    std::printf("%s\"%d\": {\"read_bytes\": %.4g", i > 1 ? ", " : "", threads, ReadBandwidth(threads));
    for (const Peak& peak : {kFloat32, kBfloat16, kInt8}) {
      if (peak.run == nullptr) {
        std::printf(", \"%s_operations\": null", peak.name);
      } else {
        const double rate = Rate(threads, peak.operations * kLoops, [&](int) { peak.run(kLoops); });
        std::printf(", \"%s_operations\": %.4g", peak.name, rate);
      }
    }
    std::printf("}");
  }
  std::printf("}\n");
  return 0;
}
