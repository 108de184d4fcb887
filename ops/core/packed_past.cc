#include "core/packed_past.h"

#include <algorithm>
#include <string>

#include "cache/packed_header.h"
#include "cache/packed_rows.h"
#include "core/refusal.h"

namespace deltallm {
namespace {

/// One head's past in the words of a sentence.
struct PastOf {
  int64_t b;
  int64_t kv_head;
};

std::string AsText(const PastOf& of) {
  return "The past of batch row " + std::to_string(of.b) + ", KV head " + std::to_string(of.kv_head);
}

void CheckHeader(const PackedLayout& layout, const PackedHeader& header, PastOf of) {
  if (header.version != HeaderVersion(layout.format)) {
    Refuse(of, " begins with the mark ", AsHex(header.version), ", not ", AsHex(HeaderVersion(layout.format)),
           " of an ", FormatName(layout.format), " cache: give the present of an earlier call of this layer.");
  }
  if (header.layout_check != LayoutCheck(layout)) {
    Refuse(of, " was written with other sinks or another delta_window than ", layout.sinks, " and ", layout.window,
           ": give the present of an earlier call of this layer.");
  }
}

/// The slots that the header speaks of are there, and the one of an open run's residual.
void CheckRoom(const PackedLayout& layout, const uint8_t* key_slab, bool runs_merge, const PackedState& state,
               PastOf of) {
  if (state.coded_rows == 0) return;
  const int64_t blocks = layout.SealedBlocks(state.coded_rows);
  int64_t slots = layout.first_coded() + layout.WaitingRows(state.coded_rows);
  bool fits = blocks <= layout.most_blocks() && slots <= layout.rows();
  if (fits && runs_merge && HoldsRun(layout, key_slab, slots - 1)) fits = ++slots <= layout.rows();
  if (!fits) {
    Refuse(of, " claims ", state.coded_rows, " coded rows, more than its ", layout.capacity(),
           " rows can hold: give the present of an earlier call of this layer.");
  }
}

void CheckCounts(const PackedLayout& layout, bool runs_merge, int64_t past_tokens, const PackedState& state,
                 PastOf of) {
  const bool same = state.coded_rows == state.coded_tokens;
  const bool possible =
      runs_merge ? state.coded_rows <= state.coded_tokens && (state.coded_rows == 0) == (state.coded_tokens == 0)
                 : same;
  if (!possible) {
    Refuse(of, " claims ", state.coded_tokens, " coded tokens in ", state.coded_rows, " rows, but ",
           runs_merge ? "rows hold at least one token each" : "its rows hold one token each",
           ": give the present of an earlier call of this layer.");
  }
  const int64_t fewest = std::max<int64_t>(past_tokens - layout.first_coded(), 0);
  if (state.coded_tokens < fewest) {
    Refuse(of, " has ", state.coded_tokens, " coded tokens, but a past of ", past_tokens, " tokens has at least ",
           fewest, ": give the lengths of the calls that wrote it.");
  }
}

/// What is left after dropping the tokens from `past_tokens` on.
PackedState Rewind(const PackedLayout& layout, bool runs_merge, int64_t past_tokens, const PackedState& state,
                   PastOf of) {
  const int64_t kept = std::max<int64_t>(past_tokens - layout.sinks, 0);
  if (state.coded_tokens <= kept) return state;
  const bool sealed = layout.SealedBlocks(kept) != layout.SealedBlocks(state.coded_rows);
  if (runs_merge || sealed) {
    Refuse(of, " is rewound to ", past_tokens, " tokens, but ", state.coded_tokens + layout.sinks, " of them are ",
           runs_merge ? "merged into runs" : "sealed in blocks",
           ", which cannot be taken back: keep at least that many, "
           "or begin anew.");
  }
  return {kept, kept};
}

}  // namespace

PackedLayout MakePackedLayout(const DeltaAttentionAttributes& attributes, int64_t head_size) {
  if (head_size > kMostPackedHeadSize) {
    Refuse("The head size is ", head_size, ", but cache_format \"", FormatName(attributes.cache_format),
           "\" takes at most ", kMostPackedHeadSize, ": use \"float16\".");
  }
  PackedLayout layout;
  layout.format = attributes.cache_format;
  layout.head_size = head_size;
  layout.sinks = attributes.attention.sinks;
  layout.window = attributes.attention.delta_window;
  return layout;
}

void CheckPackedPast(const DeltaAttentionAttributes& attributes, const DeltaAttentionInputs& in, DeltaPlan& plan) {
  plan.past_layout = plan.layout;
  plan.past_layout.SetCapacity(plan.past_capacity);
  plan.layout.SetCapacity(plan.capacity);
  plan.runs_merge =
      attributes.hold.row_granularity && attributes.attention.local_window < 0 && !in.attention_bias.present;
  const PackedLayout& layout = plan.past_layout;
  const Geometry& geometry = plan.geometry;
  if (layout.format == CacheFormat::kInt4 && layout.capacity() > 0 && !in.seqlens_k.present &&
      !in.attention_mask.present) {
    Refuse("past_key of an int4 cache does not say how many tokens it holds: give seqlens_k or attention_mask.");
  }
  plan.past_states.resize(static_cast<size_t>(geometry.batch * geometry.kv_heads));
  for (int64_t b = 0; b < geometry.batch; ++b) {
    const int64_t past_tokens = plan.lengths.rows[static_cast<size_t>(b)].PastTokens();
    if (past_tokens == 0) continue;
    // A slab of int4 has room for fewer rows of 8 bits than its capacity says.
    if (layout.RowsNeeded(past_tokens) > layout.capacity()) {
      Refuse("Batch row ", b, " has ", past_tokens, " past tokens, which need ", layout.RowsNeeded(past_tokens),
             " rows of an ", FormatName(layout.format), " cache, but past_key has ", layout.capacity(),
             ": give the present of an earlier call of this layer.");
    }
    // The heads' headers lie far apart in memory: asked for all at once, they come at once.
    for (int64_t kv_head = 0; kv_head < geometry.kv_heads; ++kv_head) {
      const int64_t head = b * geometry.kv_heads + kv_head;
      PrefetchHeader(layout, in.past_value.as<uint8_t>() + head * layout.slab_bytes());
    }
    for (int64_t kv_head = 0; kv_head < geometry.kv_heads; ++kv_head) {
      const int64_t head = b * geometry.kv_heads + kv_head;
      const PastOf of{b, kv_head};
      const PackedHeader header = ReadHeader(layout, in.past_value.as<uint8_t>() + head * layout.slab_bytes());
      CheckHeader(layout, header, of);
      CheckCounts(layout, plan.runs_merge, past_tokens, header.state, of);
      CheckRoom(layout, in.past_key.as<uint8_t>() + head * layout.slab_bytes(), plan.runs_merge, header.state, of);
      plan.past_states[static_cast<size_t>(head)] = Rewind(layout, plan.runs_merge, past_tokens, header.state, of);
    }
  }
}

}  // namespace deltallm
