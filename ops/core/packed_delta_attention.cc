#include "core/packed_delta_attention.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cache/packed_rows.h"
#include "core/new_rows.h"
#include "core/packed_attend.h"
#include "core/packed_past_blocks.h"
#include "core/packed_statistics.h"
#include "core/packed_writer.h"
#include "core/scratch.h"

namespace deltallm {
namespace {

// Below this many channels to append, waking another thread costs more than the work.
constexpr int64_t kChannelsWorthThreads = 1 << 13;

/// What a call leaves of one (batch row, KV head).
struct HeadResult {
  PackedState state;
  PackedCounts counts;
};

/// One call in its steps. "head" counts (batch row, KV head) pairs.
class PackedDeltaAttention {
 public:
  PackedDeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                       const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels,
                       const Parallel& parallel)
      : attributes_(attributes),
        inputs_(inputs),
        plan_(plan),
        outputs_(outputs),
        kernels_(kernels),
        parallel_(parallel),
        geometry_(plan.geometry),
        layout_(plan.layout),
        coder_(attributes.hold, inputs.threshold, inputs.row_weight, plan.geometry.head_size),
        new_keys_(NewRows(inputs, plan, NewPart::kKey)),
        new_values_(NewRows(inputs, plan, NewPart::kValue)),
        past_key_{inputs.past_key.as<uint8_t>(), plan.past_layout.slab_bytes()},
        past_value_{inputs.past_value.as<uint8_t>(), plan.past_layout.slab_bytes()},
        key_{static_cast<uint8_t*>(outputs.present_key), layout_.slab_bytes()},
        value_{static_cast<uint8_t*>(outputs.present_value), layout_.slab_bytes()},
        left_out_(WantsLeftOut() ? static_cast<size_t>(geometry_.kv_heads) : 0),
        results_(static_cast<size_t>(heads())) {}

  void Run() {
    CheckSharedBuffers(inputs_, plan_, outputs_);
    if (geometry_.new_tokens > 1 && attributes_.attention.exact_prefill) {
      RunExactPrefill();
    } else {
      RunTokenByToken();
    }
    if (outputs_.statistics != nullptr) WriteStatistics();
  }

 private:
  int64_t heads() const { return geometry_.batch * geometry_.kv_heads; }
  bool WantsLeftOut() const { return outputs_.statistics != nullptr && attributes_.attention.v_skip > 0.0f; }
  const RowSpan& Span(int64_t head) const { return plan_.lengths.rows[static_cast<size_t>(head / geometry_.kv_heads)]; }
  PackedWriter Writer(int64_t head) const {
    return PackedWriter(*kernels_.coding, layout_, coder_, plan_.runs_merge, head % geometry_.kv_heads,
                        {key_.Slab(head), value_.Slab(head)}, plan_.past_states[static_cast<size_t>(head)]);
  }
  PackedCounting Counting(int64_t head) const {
    return {geometry_, attributes_.attention, Span(head), layout_, attributes_.hold.row_granularity};
  }

  AttendCall Attention() const {
    return AttentionOf(attributes_, inputs_, plan_, outputs_, kernels_);
  }

  PackedAttendCall PackedAttention() {
    PackedAttendCall call;
    call.attend = Attention();
    call.layout = layout_;
    call.key = {key_.data, key_.slab_bytes};
    call.value = {value_.data, value_.slab_bytes};
    call.runs_merge = plan_.runs_merge;
    call.row_granularity = attributes_.hold.row_granularity;
    call.left_out = left_out_.empty() ? nullptr : left_out_.data();
    return call;
  }

  /// Each token is appended and then read; with one token, the keys may be split over threads.
  void RunTokenByToken() {
    const PackedAttendCall call = PackedAttention();
    const bool one = geometry_.new_tokens == 1;
    const Parallel& threads = one && IsSmallDecode(call) ? Parallel{} : parallel_;
    const int64_t splits = one ? PackedSplits(call, parallel_) : 1;
    if (splits == 1) {
      if (one) PrefetchNewest(0);
      ParallelFor(threads, heads(), [&](int64_t head) { AppendTokens(head, &call); });
      return;
    }
    const bool copies = inputs_.past_key.data != outputs_.present_key;
    const bool small = !copies && heads() * layout_.channels() < kChannelsWorthThreads;
    ParallelFor(small ? Parallel{} : parallel_, heads(), [&](int64_t head) { AppendTokens(head, nullptr); });
    std::vector<PackedState> states;
    for (const HeadResult& result : results_) states.push_back(result.state);
    AttendPackedSplit(call, states.data(), splits, threads);
  }

  /// Asks the memory for the tiles that coding a token reads and writes at the end of the head's coded rows. What comes
  /// before them is asked for when the head before is read.
  void PrefetchNewest(int64_t head) const {
    const PackedState& state = plan_.past_states[static_cast<size_t>(head)];
    if (state.coded_rows == 0) return;
    const int64_t slot = layout_.first_coded() + layout_.WaitingRows(state.coded_rows);
    const int64_t begin = (slot - 1) / kTileRows * layout_.tile_bytes();
    const int64_t end = std::min((slot / kTileRows + 1) * layout_.tile_bytes(), layout_.rows() * layout_.row_bytes());
    for (int64_t byte = begin; byte < end; byte += 64) {
      __builtin_prefetch(key_.Slab(head) + byte);
      __builtin_prefetch(value_.Slab(head) + byte);
    }
  }

  /// Appends the call's tokens one by one; with `call`, each one's query reads the cache before the next is appended.
  void AppendTokens(int64_t head, const PackedAttendCall* call) {
    TakeOver(head);
    if (geometry_.new_tokens == 1 && head + 1 < heads()) PrefetchNewest(head + 1);
    const RowSpan& span = Span(head);
    const int64_t b = head / geometry_.kv_heads;
    const int64_t appended = span.Appended(geometry_.new_tokens);
    HeadResult& result = results_[static_cast<size_t>(head)];
    PackedWriter writer = Writer(head);
    if (span.Tokens() > 0) writer.Finish();
    for (int64_t s = 0; s < geometry_.new_tokens; ++s) {
      const int64_t token = span.past + s - span.start;
      if (s < appended && token >= 0) {
        float key[kMostPackedHeadSize];
        float value[kMostPackedHeadSize];
        float buffer[2 * kMostPackedHeadSize];
        new_keys_.Read(kernels_, b, s, head % geometry_.kv_heads, buffer, key);
        new_values_.Read(kernels_, b, s, head % geometry_.kv_heads, buffer, value);
        writer.Append(token, token + 1, key, value, geometry_.head_size);
        writer.Finish();
      }
      if (call != nullptr) AttendPackedToken(*call, b, head % geometry_.kv_heads, s, writer.state());
      if (outputs_.statistics != nullptr) {
        result.counts.AddQuery(Counting(head), s, writer.state(), key_.Slab(head));
      }
    }
    Conclude(writer, head);
  }

  /// The queries read the past as it lies and the new rows unrounded; only then the new rows are appended.
  void RunExactPrefill() {
    const int64_t row = geometry_.head_size;
    const int64_t rows = geometry_.new_tokens;
    KeptFloats memory(2 * heads() * rows * row);
    float* const keys = memory.data();
    float* const values = keys + heads() * rows * row;
    ParallelFor(parallel_, heads(), [&](int64_t head) {
      float buffer[2 * kMostPackedHeadSize];
      for (int64_t s = 0; s < rows; ++s) {
        const int64_t b = head / geometry_.kv_heads;
        new_keys_.Read(kernels_, b, s, head % geometry_.kv_heads, buffer, keys + (head * rows + s) * row);
        new_values_.Read(kernels_, b, s, head % geometry_.kv_heads, buffer, values + (head * rows + s) * row);
      }
      if (outputs_.statistics != nullptr) CountExactQueries(head);
    });
    const PackedPastBlocks past(plan_, attributes_.attention, past_key_, past_value_);
    const auto as_cache = [&](const float* data) {
      return ConstFloatCache{reinterpret_cast<const char*>(data), ElementType::kFloat32, rows, row};
    };
    AttendCall call = Attention();
    call.rows.key = as_cache(keys);
    call.rows.value = as_cache(values);
    call.past = &past;
    SkipCounter skipped{left_out_.data(), nullptr};
    if (!left_out_.empty()) call.skipped = &skipped;
    AttendBlocks(call, parallel_);
    ParallelFor(parallel_, heads(), [&](int64_t head) {
      TakeOver(head);
      const RowSpan& span = Span(head);
      const int64_t first = std::max(span.start - span.past, int64_t{0});
      const int64_t last = span.Appended(rows);
      PackedWriter writer = Writer(head);
      if (first < last) {
        const int64_t token = span.past + first - span.start;
        const int64_t offset = (head * rows + first) * row;
        writer.Append(token, token + last - first, keys + offset, values + offset, row);
      }
      if (span.Tokens() > 0) writer.Finish();
      Conclude(writer, head);
    });
  }

  void CountExactQueries(int64_t head) {
    PackedCounting counting = Counting(head);
    PackedCounting past{counting.geometry, counting.rules, counting.span, plan_.past_layout, counting.row_granularity};
    for (int64_t s = 0; s < geometry_.new_tokens; ++s) {
      results_[static_cast<size_t>(head)].counts.AddQuery(past, s, plan_.past_states[static_cast<size_t>(head)],
                                                          past_key_.Slab(head));
    }
  }

  /// Puts the past into present, where they are two buffers.
  void TakeOver(int64_t head) const {
    const PackedState& state = plan_.past_states[static_cast<size_t>(head)];
    const int64_t tokens = Span(head).PastTokens();
    const int64_t blocks = layout_.SealedBlocks(state.coded_rows);
    const PackedLayout& from = plan_.past_layout;
    int64_t rows = std::min(tokens, layout_.first_coded());
    if (state.coded_rows > 0) rows = layout_.first_coded() + layout_.WaitingRows(state.coded_rows);
    if (past_key_.data == nullptr || past_key_.data != key_.data) {
      CopyKeySlab(from, past_key_.Slab(head), rows, blocks, layout_, key_.Slab(head));
      ForEachEmptySlot(state, tokens, rows, [&](int64_t slot) { ClearKeyRow(layout_, key_.Slab(head), slot); });
    }
    if (past_value_.data == nullptr || past_value_.data != value_.data) {
      const bool residual = plan_.runs_merge && state.coded_rows > 0 && HoldsRun(from, past_key_.Slab(head), rows - 1);
      CopyValueSlab(from, past_value_.Slab(head), rows + (residual ? 1 : 0), blocks, layout_, value_.Slab(head));
      ForEachEmptySlot(state, tokens, rows, [&](int64_t slot) { ClearValueRow(layout_, value_.Slab(head), slot); });
    }
  }

  /// Slots that a rewind left without a token.
  template <typename Body>
  void ForEachEmptySlot(const PackedState& state, int64_t tokens, int64_t slots, const Body& body) const {
    if (slots == 0) return;
    const PackedView view = PackedView::Of(layout_, state, tokens, 0);
    int64_t slot = 0;
    for (const SlotRun& run : view) {
      for (; slot < run.begin; ++slot) body(slot);
      slot = run.end;
    }
    for (; slot < slots; ++slot) body(slot);
  }

  void Conclude(const PackedWriter& writer, int64_t head) {
    HeadResult& result = results_[static_cast<size_t>(head)];
    result.state = writer.state();
    if (outputs_.statistics != nullptr) result.counts.AddCall(Counting(head), writer.counts(), writer.state());
  }

  void WriteStatistics() const {
    std::fill_n(outputs_.statistics, geometry_.kv_heads * 8, int64_t{0});
    for (int64_t head = 0; head < heads(); ++head) {
      const PackedCounts::Columns& columns = results_[static_cast<size_t>(head)].counts.columns();
      int64_t* row = outputs_.statistics + head % geometry_.kv_heads * 8;
      for (size_t column = 0; column < columns.size(); ++column) row[column] += columns[column];
    }
    for (size_t kv_head = 0; kv_head < left_out_.size(); ++kv_head) {
      outputs_.statistics[kv_head * 8 + 5] += geometry_.head_size * left_out_[kv_head];
    }
  }

  const DeltaAttentionAttributes& attributes_;
  const DeltaAttentionInputs& inputs_;
  const DeltaPlan& plan_;
  const DeltaAttentionOutputs& outputs_;
  const Kernels& kernels_;
  const Parallel& parallel_;
  const Geometry& geometry_;
  const PackedLayout& layout_;
  KeyCoder coder_;
  InputRows new_keys_;
  InputRows new_values_;
  PackedSlabsOf<const uint8_t> past_key_;
  PackedSlabsOf<const uint8_t> past_value_;
  PackedSlabsOf<uint8_t> key_;
  PackedSlabsOf<uint8_t> value_;
  std::vector<std::atomic<int64_t>> left_out_;  // [Hkv], or empty
  std::vector<HeadResult> results_;             // [B·Hkv]
};

}  // namespace

void RunPackedDeltaAttention(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& inputs,
                             const DeltaPlan& plan, const DeltaAttentionOutputs& outputs, const Kernels& kernels,
                             const Parallel& parallel) {
  PackedDeltaAttention(attributes, inputs, plan, outputs, kernels, parallel).Run();
}

}  // namespace deltallm
