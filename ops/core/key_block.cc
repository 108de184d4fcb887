#include "core/key_block.h"

#include <algorithm>

namespace deltallm {
namespace {

constexpr int64_t kMostColumns = PrefillArithmetic::kMostColumns;

int64_t FloatsFor(int64_t bytes) { return Scratch::RoundUp((bytes + 3) / 4); }

int64_t PanelsBytes(const PrefillArithmetic& arithmetic, int64_t head_size) {
  return KeyPacker::BlockColumns(head_size) / arithmetic.panel_keys * arithmetic.key_panel_bytes(head_size);
}

char* TakeBytes(Scratch* scratch, int64_t bytes) { return reinterpret_cast<char*>(scratch->Take((bytes + 3) / 4)); }

}  // namespace

KeyPacker::KeyPacker(const AttendCall& call, const PrefillArithmetic& arithmetic, int64_t b, int64_t head,
                     Scratch* scratch)
    : call_(call),
      arithmetic_(arithmetic),
      b_(b),
      head_(head),
      panel_bytes_(arithmetic.key_panel_bytes(call.geometry.head_size)),
      origin_(call.past == nullptr ? 0 : call.spans[b].past),
      held_begin_(0),
      exact_(TakeBytes(scratch, PanelsBytes(arithmetic, call.geometry.head_size))),
      held_(nullptr),
      values_(TakeBytes(scratch, arithmetic.value_block_bytes(call.geometry.head_size))),
      past_{} {
  if (call.rows.held.data != nullptr) {
    held_ = TakeBytes(scratch, PanelsBytes(arithmetic, call.geometry.head_size));
    held_begin_ = std::max(call.spans[b].start + call.rules.sinks, call.rows.held_begin[b]);
  }
  if (call.past != nullptr) {
    past_.keys = scratch->Take(PastBlock::kMaxRows * call.geometry.head_size);
    past_.values = scratch->Take(PastBlock::kMaxRows * call.geometry.head_size);
    past_.tokens = scratch->Take(kMostColumns);
    past_.cache_row = reinterpret_cast<int64_t*>(scratch->Take(2 * kMostColumns));
  }
}

int64_t KeyPacker::BlockColumns(int64_t head_size) {
  constexpr int64_t kElements = 32768;
  return std::clamp<int64_t>(kElements / head_size / 64 * 64, PastBlock::kMaxRows, kMostColumns);
}

int64_t KeyPacker::ScratchFloats(const AttendCall& call, const PrefillArithmetic& arithmetic) {
  const int64_t head_size = call.geometry.head_size;
  const int64_t panels = FloatsFor(PanelsBytes(arithmetic, head_size));
  int64_t floats = panels + FloatsFor(arithmetic.value_block_bytes(head_size));
  if (call.rows.held.data != nullptr) floats += panels;
  if (call.past != nullptr) {
    floats += 2 * Scratch::RoundUp(PastBlock::kMaxRows * head_size) + 3 * Scratch::RoundUp(kMostColumns);
  }
  return floats;
}

const char* KeyPacker::KeyRow(int64_t row, bool held) const {
  if (held && row >= held_begin_) return call_.rows.HeldRow(b_, head_, row);
  return call_.rows.key.Row(head_, row - origin_);
}

KeyBlock KeyPacker::PackRows(KeyRange rows, int64_t held_first, int64_t held_last) const {
  KeyBlock block;
  block.columns = rows.size();
  block.first_row = rows.begin;
  block.exact = exact_;
  block.held = held_;
  block.values = values_;
  const ElementType type = call_.rows.key.type;
  const int64_t head_size = call_.geometry.head_size;
  const void* sources[kMostColumns];
  const auto pack = [&](int64_t begin, int64_t end, bool held, char* panels) {
    for (int64_t row = begin; row < end; ++row) sources[row - begin] = KeyRow(row, held);
    arithmetic_.pack_keys(sources, type, end - begin, head_size,
                          panels + (begin - rows.begin) / arithmetic_.panel_keys * panel_bytes_);
  };
  for (int64_t begin = rows.begin; begin < rows.end; begin += arithmetic_.panel_keys) {
    const int64_t end = std::min(rows.end, begin + arithmetic_.panel_keys);
    // Only at the edge of the window do some queries read a panel exactly and others as k̂.
    if (held_ == nullptr || end > held_first) pack(begin, end, false, exact_);
    if (held_ != nullptr && begin < held_last) pack(begin, std::min(end, held_last), true, held_);
  }
  const ConstFloatCache& value = call_.rows.value;
  arithmetic_.pack_values(value.Row(head_, rows.begin - origin_), value.type, 0, block.columns, head_size, values_);
  return block;
}

KeyBlock KeyPacker::PackPast(int64_t* number) const {
  KeyBlock block;
  block.cache_row = past_.cache_row;
  block.oldest_row = KeyBlock::kSeenByAll;
  block.exact = exact_;
  block.values = values_;
  const int64_t most = BlockColumns(call_.geometry.head_size) - PastBlock::kMaxRows;
  const int64_t blocks = call_.past->Count(head_);
  // A panel is packed at once, so a block that ends within one ends this one.
  while (*number < blocks && block.columns <= most && block.columns % arithmetic_.panel_keys == 0) {
    PastBlock past = past_;
    past.tokens += block.columns;
    past.cache_row += block.columns;
    call_.past->Load(head_, *number, &past);
    ++*number;
    if (past.rows > 0) AddPast(past, &block);
  }
  return block;
}

void KeyPacker::AddPast(const PastBlock& past, KeyBlock* block) const {
  const int64_t head_size = call_.geometry.head_size;
  const int64_t panel_keys = arithmetic_.panel_keys;
  for (int64_t j = 0; j < past.rows; ++j) {
    if (past.tokens[j] != 1.0f) block->tokens = past_.tokens;
    const bool seen_by_all = past.cache_row[j] < 0;
    if (!seen_by_all) block->oldest_row = std::min(block->oldest_row, past.cache_row[j]);
    block->newest_row = std::max(block->newest_row, seen_by_all ? KeyBlock::kSeenByAll : past.cache_row[j]);
  }
  const void* sources[PastBlock::kMaxRows];
  for (int64_t begin = 0; begin < past.rows; begin += panel_keys) {
    const int64_t count = std::min(past.rows - begin, panel_keys);
    for (int64_t j = 0; j < count; ++j) sources[j] = past.keys + (begin + j) * head_size;
    arithmetic_.pack_keys(sources, ElementType::kFloat32, count, head_size,
                          exact_ + (block->columns + begin) / panel_keys * panel_bytes_);
  }
  arithmetic_.pack_values(past.values, ElementType::kFloat32, block->columns, past.rows, head_size, values_);
  block->columns += past.rows;
}

}  // namespace deltallm
