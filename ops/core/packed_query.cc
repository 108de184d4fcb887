#include "core/packed_query.h"

#include "cache/packed_blocks.h"
#include "core/packed_read_ahead.h"

namespace deltallm {
namespace {

PackedView ViewOf(const PackedAttendCall& call, int64_t b, int64_t s, const PackedState& state) {
  const RowSpan& span = call.attend.spans[b];
  const KeyRange visible = VisibleKeys(call.attend.rules, span, span.past + s);
  if (visible.size() == 0) return {};
  return PackedView::Of(call.layout, state, visible.end - span.start, visible.begin - span.start);
}

/// The slab of keys whose first bytes this thread asked for last, and those of its values. Only compared.
thread_local const uint8_t* asked_for = nullptr;

}  // namespace

PackedQuery::PackedQuery(const PackedAttendCall& call, int64_t b, int64_t kv_head, int64_t s, const PackedState& state)
    : call_(call),
      kernels_(*call.attend.kernels),
      layout_(call.layout),
      b_(b),
      kv_head_(kv_head),
      s_(s),
      group_(call.attend.geometry.group()),
      head_size_(call.attend.geometry.head_size),
      key_(call.key.Slab(b * call.attend.geometry.kv_heads + kv_head)),
      value_(call.value.Slab(b * call.attend.geometry.kv_heads + kv_head)),
      view_(ViewOf(call, b, s, state)),
      has_runs_(call.runs_merge && state.coded_rows < state.coded_tokens) {
  if (view_.sealed.size() > 0) {
    const int64_t blocks_end = (view_.sealed.end + kBlockRows - 1) / kBlockRows;
    AddStretch(true, view_.sealed.begin / kBlockRows * kTilesPerBlock, blocks_end * kTilesPerBlock);
  }
  for (const SlotRun& run : view_) AddStretch(false, run.begin / kTileRows, (run.end - 1) / kTileRows + 1);
}

void PackedQuery::AddStretch(bool sealed, int64_t begin, int64_t end) {
  if (stretch_count_ > 0) {
    Stretch& before = stretches_[static_cast<size_t>(stretch_count_ - 1)];
    if (before.sealed == sealed && begin <= before.end) {
      tiles_ += std::max<int64_t>(end - before.end, 0);
      before.end = std::max(before.end, end);
      return;
    }
  }
  stretches_[static_cast<size_t>(stretch_count_++)] = {sealed, begin, end};
  tiles_ += end - begin;
}

int64_t PackedQuery::Work::Floats(const PackedQuery& query) {
  const int64_t group = query.group_;
  const int64_t stride = (query.head_size_ + 63) / 64 * 64;
  return Scratch::RoundUp(group * query.head_size_) + Scratch::RoundUp(2 * query.head_size_) +
         Scratch::RoundUp(group * kRowsPerPanel) + Scratch::RoundUp(kRowsPerPanel / 2) + 3 * Scratch::RoundUp(group) +
         group * stride + Scratch::RoundUp(query.layout_.tile_bytes() / 4) +
         Scratch::RoundUp(query.layout_.block_bytes() / 4);
}

PackedQuery::Work::Work(const PackedQuery& of) : scratch_(Floats(of)) {
  const int64_t group = of.group_;
  const int64_t head_size = of.head_size_;
  const AttendCall& attend = of.call_.attend;
  query = scratch_.Take(group * head_size);
  float* buffer = scratch_.Take(2 * head_size);
  weights = scratch_.Take(group * kRowsPerPanel);
  tags = reinterpret_cast<uint16_t*>(scratch_.Take(kRowsPerPanel / 2));
  sums = scratch_.Take(group);
  packed.step = scratch_.Take(group);
  packed.sum = reinterpret_cast<int32_t*>(scratch_.Take(group));
  packed.stride = (head_size + 63) / 64 * 64;
  packed.value = reinterpret_cast<int16_t*>(scratch_.Take(group * packed.stride / 2));
  packed.high = reinterpret_cast<int8_t*>(scratch_.Take(group * packed.stride / 4));
  packed.low = reinterpret_cast<int8_t*>(scratch_.Take(group * packed.stride / 4));
  tile = reinterpret_cast<uint8_t*>(scratch_.Take(of.layout_.tile_bytes() / 4));
  block = reinterpret_cast<uint8_t*>(scratch_.Take(of.layout_.block_bytes() / 4));
  for (int64_t g = 0; g < group; ++g) {
    attend.query.Read(of.kernels_, of.b_, of.s_, of.kv_head_ * group + g, buffer, query + g * head_size);
  }
  of.kernels_.scale(query, group * head_size, attend.ScoreFactor());
  of.kernels_.packed->quantize_query(query, head_size, group, head_size, packed);
}

void PackedQuery::Run(int64_t first, int64_t last, const Partial& partial, bool goes_on) const {
  const Work work(*this);
  partial.Clear(group_, head_size_);
  const Geometry& geometry = call_.attend.geometry;
  const int64_t head = b_ * geometry.kv_heads + kv_head_;
  const bool followed = goes_on && head + 1 < geometry.batch * geometry.kv_heads;
  const bool cold = asked_for != key_;
  asked_for = followed ? call_.key.Slab(head + 1) : nullptr;
  ReadAheads ahead{{*this, first, last, key_, asked_for, cold},
                   {*this, first, last, value_, followed ? call_.value.Slab(head + 1) : nullptr, cold}};
  PanelWalk walk(*this, first, last, kTilesPerPanel);
  Stretch panel{};
  while (walk.Next(&panel)) Panel(panel, work, partial, ahead);
}

void PackedQuery::Write(const Partial& partial) const {
  for (int64_t g = 0; g < group_; ++g) {
    const int64_t h = kv_head_ * group_ + g;
    float* row = partial.sum + g * head_size_;
    kernels_.scale(row, head_size_, call_.attend.Finish(h, partial.maximum[g], partial.denominator[g]));
    call_.attend.output.Write(kernels_, b_, s_, h, row);
  }
}

void PackedQuery::Panel(const Stretch& panel, const Work& work, const Partial& partial, ReadAheads& ahead) const {
  const AttentionRules& rules = call_.attend.rules;
  const int64_t rows = (panel.end - panel.begin) * kTileRows;
  Score(panel, work, ahead);
  for (int64_t g = 0; g < group_; ++g) {
    float* scores = work.weights + g * kRowsPerPanel;
    call_.attend.Softcap(scores, rows);
    Mask(panel, g, scores);
    const float offset = partial.Raise(kernels_, g, head_size_, scores, rows);
    work.sums[g] = kernels_.exp2_and_sum(scores, rows, offset);
  }
  uint32_t needed = ~uint32_t{0};
  if (rules.v_skip > 0.0f) {
    needed = Needed(panel, work.weights);
    if (call_.left_out != nullptr) CountLeftOut(panel, needed);
  }
  if (LoadTags(panel, work.tags)) {
    // A row of n tokens counts n times, in the denominator and with its values.
    for (int64_t g = 0; g < group_; ++g) {
      work.sums[g] = kernels_.multiply_tokens_and_sum(work.weights + g * kRowsPerPanel, work.tags, rows);
    }
  }
  for (int64_t g = 0; g < group_; ++g) partial.denominator[g] += work.sums[g];
  AddValues(panel, needed, work, partial.sum, ahead);
}

void PackedQuery::Score(const Stretch& panel, const Work& work, ReadAheads& ahead) const {
  const PackedKernels& packed = *kernels_.packed;
  if (panel.sealed) {
    for (int64_t tile = panel.begin; tile < panel.end; tile += kTilesPerBlock) {
      packed.score_block(work.query, head_size_, group_, Block(key_, tile / kTilesPerBlock), head_size_,
                         work.weights + (tile - panel.begin) * kTileRows, kRowsPerPanel,
                         ahead.keys.Take(layout_.block_bytes()));
    }
    return;
  }
  const int64_t whole = std::min(panel.end, layout_.whole_tiles()) - panel.begin;
  // In pieces no larger than those of the values, so that what is ahead may change from one slab to the next.
  for (int64_t tile = 0; tile < whole; tile += kTilesPerBlock) {
    const int64_t count = std::min(kTilesPerBlock, whole - tile);
    packed.score_tiles(work.packed, group_, key_ + (panel.begin + tile) * layout_.tile_bytes(), count, head_size_,
                       work.weights + tile * kTileRows, kRowsPerPanel, ahead.keys.Take(count * layout_.tile_bytes()));
  }
  if (panel.begin + whole == panel.end) return;
  const int64_t first = layout_.whole_tiles() * kTileRows;
  std::memset(work.tile, 0, static_cast<size_t>(layout_.tile_bytes()));
  GatherKeyTile(layout_, key_, first, layout_.rows(), work.tile);
  packed.score_tiles(work.packed, group_, work.tile, 1, head_size_, work.weights + (first - panel.begin * kTileRows),
                     kRowsPerPanel, {});
}

template <typename Body>
void PackedQuery::ForEachSeen(bool sealed, int64_t begin, int64_t end, const Body& body) const {
  const auto visit = [&](const SlotRun& run) {
    const int64_t first = std::max(run.begin, begin);
    const int64_t last = std::min(run.end, end);
    if (first < last) body(first, last, run);
  };
  if (sealed) {
    visit({view_.sealed.begin, view_.sealed.end, layout_.sinks + view_.sealed.begin, true});
  } else {
    for (const SlotRun& run : view_) visit(run);
  }
}

void PackedQuery::Mask(const Stretch& panel, int64_t g, float* scores) const {
  const int64_t begin = panel.begin * kTileRows;
  const int64_t end = panel.end * kTileRows;
  int64_t row = begin;
  ForEachSeen(panel.sealed, begin, end, [&](int64_t first, int64_t last, const SlotRun& run) {
    std::fill(scores + (row - begin), scores + (first - begin), Partial::kNegativeInfinity);
    const int64_t column = call_.attend.spans[b_].start + run.token + (first - run.begin);
    call_.attend.AddBias(b_, kv_head_ * group_ + g, s_, column, last - first, scores + (first - begin));
    row = last;
  });
  std::fill(scores + (row - begin), scores + (end - begin), Partial::kNegativeInfinity);
}

bool PackedQuery::LoadTags(const Stretch& panel, uint16_t* tags) const {
  static constexpr uint16_t kOnes[kTileRows] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  if (!has_runs_) return false;
  bool any = false;
  for (int64_t tile = panel.begin; tile < panel.end; ++tile) {
    uint16_t* of_tile = tags + (tile - panel.begin) * kTileRows;
    if (panel.sealed) {
      const uint8_t* block = Block(key_, tile / kTilesPerBlock);
      std::memcpy(of_tile, BlockTags(layout_, block) + tile % kTilesPerBlock * sizeof kOnes, sizeof kOnes);
    } else if (tile < layout_.whole_tiles()) {
      std::memcpy(of_tile, key_ + (tile + 1) * layout_.tile_bytes() - sizeof kOnes, sizeof kOnes);
    } else {
      const int64_t rows = layout_.rows() % kTileRows;
      for (int64_t j = 0; j < rows; ++j) of_tile[j] = ReadTag(layout_, key_, tile * kTileRows + j);
      std::fill(of_tile + rows, of_tile + kTileRows, uint16_t{1});
    }
    any = any || std::memcmp(of_tile, kOnes, sizeof kOnes) != 0;
  }
  return any;
}

uint32_t PackedQuery::Needed(const Stretch& panel, const float* weights) const {
  const float least = call_.attend.rules.v_skip;
  const int64_t step = panel.sealed ? kBlockRows : kTileRows;
  const int64_t units = (panel.end - panel.begin) * kTileRows / step;
  uint32_t needed = 0;
  for (int64_t unit = 0; unit < units; ++unit) {
    uint32_t any = 0;
    for (int64_t g = 0; g < group_; ++g) {
      const float* row = weights + g * kRowsPerPanel + unit * step;
      // Written so that a NaN is added, and shows.
      for (int64_t j = 0; j < step; ++j) any |= row[j] < least ? 0u : 1u;
    }
    needed |= any << unit;
  }
  return needed;
}

void PackedQuery::CountLeftOut(const Stretch& panel, uint32_t needed) const {
  const int64_t step = panel.sealed ? kBlockRows : kTileRows;
  const int64_t begin = panel.begin * kTileRows;
  const int64_t units = (panel.end - panel.begin) * kTileRows / step;
  int64_t rows = 0;
  for (int64_t unit = 0; unit < units; ++unit) {
    if ((needed >> unit & 1u) != 0) continue;
    ForEachSeen(panel.sealed, begin + unit * step, begin + (unit + 1) * step,
                [&](int64_t first, int64_t last, const SlotRun& run) {
                  for (int64_t row = first; row < last; ++row) {
                    rows += run.coded && Repeats(panel.sealed, row) ? 0 : 1;
                  }
                });
  }
  call_.left_out[kv_head_].fetch_add(group_ * rows, std::memory_order_relaxed);
}

bool PackedQuery::Repeats(bool sealed, int64_t row) const {
  if (!call_.row_granularity) return false;
  const uint16_t tag =
      sealed ? ReadBlockTag(layout_, Block(key_, row / kBlockRows), row % kBlockRows) : ReadTag(layout_, key_, row);
  return RepeatsKey(tag);
}

int64_t PackedQuery::CleanUntil(int64_t tile) const {
  // Runs that lie next to each other count as one.
  int64_t end = tile * kTileRows;
  for (const SlotRun& run : view_) {
    if (run.begin <= end && run.end > end) end = run.end;
  }
  return std::max(tile, std::min(end / kTileRows, layout_.whole_tiles()));
}

void PackedQuery::AddValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum,
                            ReadAheads& ahead) const {
  if (panel.sealed) {
    AddBlockValues(panel, needed, work, sum, ahead);
  } else {
    AddTileValues(panel, needed, work, sum, ahead);
  }
}

void PackedQuery::AddBlockValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum,
                                 ReadAheads& ahead) const {
  for (int64_t tile = panel.begin; tile < panel.end; tile += kTilesPerBlock) {
    const int64_t number = tile / kTilesPerBlock;
    if ((needed >> ((tile - panel.begin) / kTilesPerBlock) & 1u) == 0) {
      ahead.values.Skip(layout_.block_bytes());
      continue;
    }
    const uint8_t* block = Block(value_, number);
    const int64_t hidden = view_.sealed.begin - number * kBlockRows;
    if (hidden > 0) {
      MaskValueBlock(layout_, block, hidden, kBlockRows, work.block);
      block = work.block;
    }
    kernels_.packed->add_block(work.weights + (tile - panel.begin) * kTileRows, kRowsPerPanel, group_, block,
                               head_size_, sum, head_size_, ahead.values.Take(layout_.block_bytes()));
  }
}

void PackedQuery::AddTileValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum,
                                ReadAheads& ahead) const {
  const auto is_needed = [&](int64_t tile) { return (needed >> (tile - panel.begin) & 1u) != 0; };
  const auto add = [&](int64_t tile, const uint8_t* tiles, int64_t count) {
    kernels_.packed->add_tiles(work.weights + (tile - panel.begin) * kTileRows, kRowsPerPanel, group_, tiles, count,
                               head_size_, sum, head_size_, ahead.values.Take(count * layout_.tile_bytes()));
  };
  int64_t tile = panel.begin;
  while (tile < panel.end) {
    if (!is_needed(tile)) {
      ahead.values.Skip(layout_.tile_bytes());
      ++tile;
      continue;
    }
    const int64_t clean = std::min({CleanUntil(tile), panel.end, tile + kTilesPerBlock});
    if (clean == tile) {
      // Rows that nobody sees may hold anything, and 0 times NaN is NaN.
      std::memset(work.tile, 0, static_cast<size_t>(layout_.tile_bytes()));
      ForEachSeen(false, tile * kTileRows, (tile + 1) * kTileRows, [&](int64_t first, int64_t last, const SlotRun&) {
        GatherValueTile(layout_, value_, first, last, work.tile);
      });
      add(tile, work.tile, 1);
      ++tile;
      continue;
    }
    int64_t end = tile + 1;
    while (end < clean && is_needed(end)) ++end;
    add(tile, value_ + tile * layout_.tile_bytes(), end - tile);
    tile = end;
  }
}

}  // namespace deltallm
