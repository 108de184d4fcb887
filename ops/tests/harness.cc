#include "tests/harness.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/select_kernels.h"

namespace deltallm::test {
namespace {

std::vector<Test>& Tests() {
  static std::vector<Test> tests;
  return tests;
}

int failures = 0;

uint64_t Seed() {
  const char* text = std::getenv("DELTALLM_TEST_SEED");
  return text == nullptr ? 20250728 : std::strtoull(text, nullptr, 10);
}

}  // namespace

bool Register(const char* group, const char* name, std::function<void()> body) {
  Tests().push_back({group, name, std::move(body)});
  return true;
}

void Fail(const char* file, int line, const std::string& what) {
  ++failures;
  // A wrong kernel fails everywhere; the first few places say enough.
  if (failures <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

Random::Random() : engine_(Seed()) {}

int64_t Random::Int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }

float Random::Normal() { return std::normal_distribution<float>()(engine_); }

std::vector<float> Random::Normals(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = Normal();
  return values;
}

int Trials(int all) {
  static const char* const text = std::getenv("DELTALLM_TEST_FEWER");
  static const int divisor = text == nullptr ? 1 : std::max(std::atoi(text), 1);
  return std::max(all / divisor, 1);
}

std::vector<const Kernels*> AvailableKernels() {
  std::vector<const Kernels*> sets;
  for (const char* isa : {"scalar", "avx2", "avx512", "avx512_vnni", "neon", "neon_dotprod"}) {
    if (IsaSupported(isa)) sets.push_back(&SelectKernels(isa));
  }
  return sets;
}

std::string RefusalOf(const std::function<void()>& body) {
  try {
    body();
  } catch (const Refusal& refusal) {
    return refusal.what();
  }
  return "";
}

Parallel ThreadPerTask() {
  return {[](void*, void (*task)(void*, size_t), size_t count, void* data) {
            std::vector<std::thread> threads;
            for (size_t i = count; i-- > 0;) threads.emplace_back(task, data, i);
            for (std::thread& thread : threads) thread.join();
          },
          nullptr, kThreads};
}

}  // namespace deltallm::test

int main(int argc, char** argv) {
  using namespace deltallm::test;
  int run = 0;
  for (const Test& test : Tests()) {
    if (argc > 1 && std::strcmp(argv[1], test.group) != 0) continue;
    const int before = failures;
    test.body();
    ++run;
    std::printf("%s %s.%s\n", failures == before ? "ok  " : "FAIL", test.group, test.name);
  }
  if (run == 0) std::printf("There is no test group %s.\n", argc > 1 ? argv[1] : "");
  if (failures > 0) std::printf("%d failures, DELTALLM_TEST_SEED=%llu\n", failures, (unsigned long long)Seed());
  return failures == 0 && run > 0 ? 0 : 1;
}
