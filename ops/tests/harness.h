// A test harness in one page: named tests in groups, expectations that print both sides, and one seed for all.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "core/refusal.h"
#include "kernels/kernels.h"

namespace deltallm::test {

struct Test {
  const char* group;
  const char* name;
  std::function<void()> body;
};

/// Adds a test to the program; its value only serves to run before main.
bool Register(const char* group, const char* name, std::function<void()> body);

/// Notes a failure of the running test, which goes on.
void Fail(const char* file, int line, const std::string& what);

#define DELTALLM_TEST(group, name)                                                                           \
  static void group##_##name();                                                                              \
  static const bool group##_##name##_registered = ::deltallm::test::Register(#group, #name, group##_##name); \
  static void group##_##name()

#define EXPECT(condition, ...)                                                                           \
  do {                                                                                                   \
    if (!(condition))                                                                                    \
      ::deltallm::test::Fail(__FILE__, __LINE__, ::deltallm::test::Text(#condition, ": ", __VA_ARGS__)); \
  } while (false)

template <typename... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Random numbers of one test: the seed (environment variable DELTALLM_TEST_SEED) is printed when a test fails.
class Random {
 public:
  Random();
  int64_t Int(int64_t low, int64_t high);  ///< both included
  float Normal();
  std::vector<float> Normals(int64_t count);
  template <typename T>
  T Pick(std::initializer_list<T> choices) {
    return *(choices.begin() + Int(0, static_cast<int64_t>(choices.size()) - 1));
  }

 private:
  std::mt19937_64 engine_;
};

/// How many of so many random cases to run: fewer, but at least one, under an emulator (environment variable
/// DELTALLM_TEST_FEWER, a divisor).
int Trials(int all);

/// The kernel sets this processor runs; the scalar one first.
std::vector<const Kernels*> AvailableKernels();

/// The sentence of the Refusal that body throws; "" if it throws none.
std::string RefusalOf(const std::function<void()>& body);

/// No KV head count of a test is a multiple of it: decode always splits its keys where they are many.
constexpr int64_t kThreads = 5;

/// A pool that starts a thread per task, in no particular order, and says it has kThreads.
Parallel ThreadPerTask();

/// The calling thread alone, splitting the work as ThreadPerTask does.
inline Parallel Serial() { return {nullptr, nullptr, kThreads}; }

}  // namespace deltallm::test
