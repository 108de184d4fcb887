#include "core/scratch.h"

#include <memory>
#include <new>
#include <utility>

namespace deltallm {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Free {
  void operator()(float* block) const { ::operator delete(block, kAlignment); }
};

struct ThreadBlock {
  std::unique_ptr<float, Free> floats;
  int64_t size = 0;
};

thread_local ThreadBlock thread_block;
thread_local std::vector<float> kept_floats;

}  // namespace

Scratch::Scratch(int64_t floats) {
  if (thread_block.size < floats) {
    thread_block.floats.reset();
    thread_block.size = 0;
    const auto bytes = static_cast<size_t>(floats) * sizeof(float);
    thread_block.floats.reset(static_cast<float*>(::operator new(bytes, kAlignment)));
    thread_block.size = floats;
  }
  next_ = thread_block.floats.get();
}

float* Scratch::Take(int64_t count) {
  float* taken = next_;
  next_ += RoundUp(count);
  return taken;
}

KeptFloats::KeptFloats(int64_t count) : floats_(std::move(kept_floats)) {
  if (floats_.size() < static_cast<size_t>(count)) floats_.resize(static_cast<size_t>(count));
}

KeptFloats::~KeptFloats() {
  if (floats_.size() <= static_cast<size_t>(kMostKept)) kept_floats = std::move(floats_);
}

}  // namespace deltallm
