#include "core/delta_attention.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "core/attend.h"
#include "core/key_coder.h"
#include "core/new_rows.h"
#include "core/packed_delta_attention.h"
#include "core/scratch.h"
#include "core/statistics.h"

namespace deltallm {
namespace {

// Below this many elements to copy or code, waking another thread costs more than the work.
constexpr int64_t kElementsWorthThreads = 1 << 15;

/// One call in its steps. "head" counts (batch row, KV head) pairs.
class DeltaAttention {
 public:
  DeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs, const DeltaPlan& plan,
                 const DeltaAttentionOutputs& outputs, const Kernels& kernels, const Parallel& parallel)
      : attributes_(attributes),
        inputs_(inputs),
        plan_(plan),
        outputs_(outputs),
        kernels_(kernels),
        parallel_(parallel),
        geometry_(plan.geometry),
        coder_(attributes.hold, inputs.threshold, inputs.row_weight, plan.geometry.head_size),
        present_key_{static_cast<char*>(outputs.present_key), plan.cache_type, plan.capacity, geometry_.head_size},
        present_value_{static_cast<char*>(outputs.present_value), plan.cache_type, plan.capacity, geometry_.head_size} {
  }

  void Run() {
    CheckSharedBuffers(inputs_, plan_, outputs_);
    ForEachHead([this](int64_t b, int64_t head) { Append(b, head); });
    // A single query reads what this call codes; several queries still need the rows exactly, so those are coded aside.
    const bool one_query = geometry_.new_tokens == 1;
    const bool aside = !one_query && !attributes_.attention.exact_prefill;
    if (one_query) ForEachHead([this](int64_t b, int64_t head) { CodeInPlace(b, head); });
    if (aside) {
      AllocateHeld();
      ForEachHead([this](int64_t b, int64_t head) { CodeAside(b, head); });
    }
    std::vector<int64_t> left_out = AttendAndCountSkipped();
    if (aside) ForEachHead([this](int64_t b, int64_t head) { Commit(b, head); });
    if (!one_query && !aside) ForEachHead([this](int64_t b, int64_t head) { CodeInPlace(b, head); });
    if (outputs_.statistics != nullptr) {
      const StatisticsCall call{geometry_, attributes_.attention, attributes_.hold.row_granularity,
                                spans(),   AsConst(present_key_), left_out.empty() ? nullptr : left_out.data()};
      CountStatistics(call, parallel_, outputs_.statistics);
    }
  }

 private:
  const RowSpan* spans() const { return plan_.lengths.rows.data(); }
  KeyRange Coded(int64_t b) const { return CodedRows(attributes_.attention, spans()[b]); }

  template <typename Body>
  void ForEachHead(const Body& body) const {
    const int64_t heads = geometry_.batch * geometry_.kv_heads;
    const bool in_place = inputs_.past_key.data == outputs_.present_key;
    const int64_t rows = in_place ? geometry_.new_tokens : plan_.capacity;
    const bool small = heads * rows * geometry_.head_size < kElementsWorthThreads;
    ParallelFor(small ? Parallel{} : parallel_, heads, [&](int64_t head) { body(head / geometry_.kv_heads, head); });
  }

  void Append(int64_t b, int64_t head) const {
    AppendTo(present_key_, inputs_.past_key, NewRows(inputs_, plan_, NewPart::kKey), b, head);
    AppendTo(present_value_, inputs_.past_value, NewRows(inputs_, plan_, NewPart::kValue), b, head);
  }

  void AppendTo(const FloatCache& cache, const Tensor& past, const InputRows& rows, int64_t b, int64_t head) const {
    const RowSpan& span = spans()[b];
    const int64_t count = span.Appended(geometry_.new_tokens);
    const bool in_place = past.present && past.data == cache.data;
    if (!in_place) {
      const int64_t row_bytes = cache.row_bytes();
      if (span.past > 0) {
        const ConstFloatCache old{past.as<char>(), cache.type, plan_.past_capacity, cache.head_size};
        std::memcpy(cache.Row(head, 0), old.Row(head, 0), static_cast<size_t>(span.past * row_bytes));
      }
      const int64_t written = span.past + count;
      if (plan_.capacity > written) {
        std::memset(cache.Row(head, written), 0, static_cast<size_t>((plan_.capacity - written) * row_bytes));
      }
    }
    Scratch scratch(Scratch::RoundUp(geometry_.head_size) + Scratch::RoundUp(2 * geometry_.head_size));
    float* row = scratch.Take(geometry_.head_size);
    float* buffer = scratch.Take(2 * geometry_.head_size);
    for (int64_t s = 0; s < count; ++s) {
      rows.Read(kernels_, b, s, head % geometry_.kv_heads, buffer, row);
      WriteRow(kernels_, cache.type, row, geometry_.head_size, cache.Row(head, span.past + s));
    }
  }

  void CodeInPlace(int64_t b, int64_t head) const {
    const KeyRange coded = Coded(b);
    if (coded.size() > 0) CodeRows(b, head, coded, present_key_.Row(head, coded.begin));
  }

  void CodeAside(int64_t b, int64_t head) const {
    const KeyRange coded = Coded(b);
    if (coded.size() > 0) CodeRows(b, head, coded, held_.Row(head, 0));
  }

  /// k̂ of the cache rows `coded`, which are not empty, into the rows at `target`.
  void CodeRows(int64_t b, int64_t head, KeyRange coded, char* target) const {
    // Row 0 has none before it, and is transmitted.
    const char* before = coded.begin == 0 ? nullptr : present_key_.Row(head, coded.begin - 1);
    const int64_t head_size = geometry_.head_size;
    const int64_t row_bytes = present_key_.row_bytes();
    Scratch scratch(2 * Scratch::RoundUp(head_size));
    float* key_buffer = scratch.Take(head_size);
    float* previous_buffer = scratch.Take(head_size);
    for (int64_t row = coded.begin; row < coded.end; ++row, target += row_bytes) {
      const char* stored = present_key_.Row(head, row);
      if (coder_.Restarts(row - spans()[b].start)) {
        if (target != stored) std::memcpy(target, stored, static_cast<size_t>(row_bytes));
      } else {
        const float* key = ReadRow(kernels_, plan_.cache_type, stored, head_size, key_buffer);
        const float* previous = ReadRow(kernels_, plan_.cache_type, before, head_size, previous_buffer);
        if (plan_.cache_type == ElementType::kFloat32) {
          coder_.Code(head % geometry_.kv_heads, key, previous, reinterpret_cast<float*>(target));
        } else {
          coder_.Code(head % geometry_.kv_heads, key, previous, key_buffer);
          WriteRow(kernels_, plan_.cache_type, key_buffer, head_size, target);
        }
      }
      before = target;
    }
  }

  void AllocateHeld() {
    int64_t most = 0;
    for (int64_t b = 0; b < geometry_.batch; ++b) {
      held_begin_.push_back(Coded(b).begin);
      most = std::max(most, Coded(b).size());
    }
    held_ = {nullptr, plan_.cache_type, most, geometry_.head_size};
    held_buffer_.reset(new char[static_cast<size_t>(geometry_.batch * geometry_.kv_heads * most * held_.row_bytes())]);
    held_.data = held_buffer_.get();
  }

  void Commit(int64_t b, int64_t head) const {
    const KeyRange coded = Coded(b);
    if (coded.size() == 0) return;
    std::memcpy(present_key_.Row(head, coded.begin), held_.Row(head, 0),
                static_cast<size_t>(coded.size() * held_.row_bytes()));
  }

  /// Values left out per KV head; empty if nobody asked.
  std::vector<int64_t> AttendAndCountSkipped() const {
    AttendCall call = AttentionOf(attributes_, inputs_, plan_, outputs_, kernels_);
    call.rows = {AsConst(present_key_), AsConst(present_value_), AsConst(held_), held_begin_.data()};
    if (outputs_.statistics == nullptr || attributes_.attention.v_skip == 0.0f) {
      Attend(call, parallel_);
      return {};
    }
    std::vector<std::atomic<int64_t>> counters(static_cast<size_t>(geometry_.kv_heads));
    const std::vector<uint8_t> repeats =
        attributes_.hold.row_granularity ? RepeatedRows(call.rows) : std::vector<uint8_t>();
    SkipCounter skipped{counters.data(), repeats.empty() ? nullptr : repeats.data()};
    call.skipped = &skipped;
    Attend(call, parallel_);
    return {counters.begin(), counters.end()};
  }

  /// 1 for every row of k̂ that equals the row before it, [B·Hkv, capacity].
  std::vector<uint8_t> RepeatedRows(const KeyValueRows& rows) const {
    std::vector<uint8_t> repeats(static_cast<size_t>(geometry_.batch * geometry_.kv_heads * plan_.capacity), 0);
    ForEachHead([&](int64_t b, int64_t head) {
      const RowSpan& span = spans()[b];
      const int64_t end = held_.data == nullptr ? span.length : std::min(span.length, Coded(b).end);
      for (int64_t row = span.start + 1; row < end; ++row) {
        const int64_t equal = EqualChannels(plan_.cache_type, rows.HeldRow(b, head, row),
                                            rows.HeldRow(b, head, row - 1), geometry_.head_size);
        repeats[static_cast<size_t>(head * plan_.capacity + row)] = equal == geometry_.head_size ? 1 : 0;
      }
    });
    return repeats;
  }

  const DeltaAttentionAttributes& attributes_;
  const DeltaAttentionInputs& inputs_;
  const DeltaPlan& plan_;
  const DeltaAttentionOutputs& outputs_;
  const Kernels& kernels_;
  const Parallel& parallel_;
  const Geometry& geometry_;
  KeyCoder coder_;
  FloatCache present_key_;
  FloatCache present_value_;
  FloatCache held_;  // rows coded aside, from held_begin_ on
  std::vector<int64_t> held_begin_;
  std::unique_ptr<char[]> held_buffer_;
};

}  // namespace

void RunDeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                       const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels,
                       const Parallel& parallel) {
  if (plan.packed_cache()) {
    RunPackedDeltaAttention(attributes, inputs, plan, outputs, kernels, parallel);
  } else {
    DeltaAttention(attributes, inputs, plan, outputs, kernels, parallel).Run();
  }
}

}  // namespace deltallm
