// Running independent tasks on somebody else's thread pool.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

namespace deltallm {

/// A thread pool as a function: calls task(data, i) once for every i < count, on any thread, and returns when all have
/// ended.
struct Parallel {
  void (*run)(void* pool, void (*task)(void* data, size_t i), size_t count, void* data) = nullptr;
  void* pool = nullptr;
  /// How many threads there may be. It decides how a sum is split, so equal numbers give equal bits.
  int64_t threads = 1;
};

/// body(i) for every i in [0, count). With `run` null, or one task, on the calling thread.
/// body may throw std::bad_alloc only; it is thrown again here once all tasks have ended.
template <typename Body>
void ParallelFor(const Parallel& parallel, int64_t count, const Body& body) {
  if (count <= 1 || parallel.run == nullptr) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  struct Shared {
    const Body& body;
    std::atomic<bool> out_of_memory{false};
  } shared{body, {}};
  parallel.run(
      parallel.pool,
      [](void* data, size_t i) {
        Shared& state = *static_cast<Shared*>(data);
        try {
          state.body(static_cast<int64_t>(i));
        } catch (const std::bad_alloc&) {
          state.out_of_memory = true;
        }
      },
      static_cast<size_t>(count), &shared);
  if (shared.out_of_memory) throw std::bad_alloc();
}

}  // namespace deltallm
