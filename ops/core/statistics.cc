#include "core/statistics.h"

#include <algorithm>
#include <array>

#include "core/visibility.h"

namespace deltallm {
namespace {

constexpr int kColumns = 8;

/// Per cache row, what Δ = 0 spares, summed over the rows [0, j), one entry per j: channels equal to the row before
/// (element), or rows equal to the row before (row).
std::vector<int64_t> SumSpared(const StatisticsCall& call, int64_t head, const RowSpan& span) {
  const int64_t head_size = call.geometry.head_size;
  std::vector<int64_t> sums(static_cast<size_t>(span.length + 1), 0);
  for (int64_t j = 0; j < span.length; ++j) {
    int64_t spared = 0;
    // The first real row has none before it.
    if (j > span.start) {
      const char* row = call.key.Row(head, j);
      const char* before = call.key.Row(head, j - 1);
      spared = call.row_granularity ? (RowsEqual(call.key.type, row, before, head_size) ? 1 : 0)
                                    : EqualChannels(call.key.type, row, before, head_size);
    }
    sums[static_cast<size_t>(j) + 1] = sums[static_cast<size_t>(j)] + spared;
  }
  return sums;
}

int64_t Between(const std::vector<int64_t>& sums, KeyRange range) {
  if (range.size() == 0) return 0;
  return sums[static_cast<size_t>(range.end)] - sums[static_cast<size_t>(range.begin)];
}

using Counts = std::array<int64_t, kColumns>;

Counts CountHead(const StatisticsCall& call, int64_t b, int64_t head) {
  const RowSpan& span = call.spans[b];
  const int64_t head_size = call.geometry.head_size;
  const int64_t per_key = call.geometry.group() * head_size;
  const std::vector<int64_t> spared = SumSpared(call, head, span);
  const KeyRange coded = CodedRows(call.rules, span);
  Counts counts{};
  counts[0] = coded.size() * (call.row_granularity ? 1 : head_size);
  counts[1] = Between(spared, coded);
  int64_t rows_seen = 0;
  int64_t seen_until = 0;
  for (int64_t s = 0; s < call.geometry.new_tokens; ++s) {
    const int64_t row = span.past + s;
    const KeyRange visible = VisibleKeys(call.rules, span, row);
    if (visible.size() == 0) continue;
    const KeyRange read_held = Intersect(visible, HeldKeys(call.rules, span, call.geometry.new_tokens, row));
    const int64_t held = Between(spared, read_held);
    counts[2] += per_key * visible.size();
    counts[3] += call.row_granularity ? per_key * held : call.geometry.group() * held;
    counts[5] += call.row_granularity ? per_key * held : 0;
    rows_seen += std::max<int64_t>(visible.end - std::max(visible.begin, seen_until), 0);
    seen_until = std::max(seen_until, visible.end);
  }
  counts[4] = counts[2];
  const int64_t row_bytes = 2 * call.key.row_bytes();
  counts[6] = (span.length - span.start) * row_bytes;
  counts[7] = rows_seen * row_bytes;
  return counts;
}

/// Channels compared before a row that differs is given up.
constexpr int64_t kChunk = 32;

/// 1 where two elements are equal as numbers. Without branches, so that the loops over it become vector code.
inline int32_t Equal(float a, float b) { return a == b ? 1 : 0; }

/// The same on half bits: the same bits and no NaN, or zeros of either sign.
inline int32_t Equal(uint16_t a, uint16_t b) {
  const auto same_number = static_cast<int32_t>(a == b) & static_cast<int32_t>((a & 0x7fff) <= 0x7c00);
  return same_number | static_cast<int32_t>(((a | b) & 0x7fff) == 0);
}

template <typename T>
int64_t CountEqual(const char* row, const char* before, int64_t count) {
  const T* a = reinterpret_cast<const T*>(row);
  const T* b = reinterpret_cast<const T*>(before);
  int32_t equal = 0;
  for (int64_t c = 0; c < count; ++c) equal += Equal(a[c], b[c]);
  return equal;
}

template <typename T>
bool AllEqual(const char* row, const char* before, int64_t head_size) {
  constexpr int64_t kBytes = sizeof(T);
  for (int64_t c = 0; c < head_size; c += kChunk) {
    const int64_t count = std::min(kChunk, head_size - c);
    if (CountEqual<T>(row + c * kBytes, before + c * kBytes, count) != count) return false;
  }
  return true;
}

}  // namespace

int64_t EqualChannels(ElementType type, const char* row, const char* before, int64_t head_size) {
  return type == ElementType::kFloat32 ? CountEqual<float>(row, before, head_size)
                                       : CountEqual<uint16_t>(row, before, head_size);
}

bool RowsEqual(ElementType type, const char* row, const char* before, int64_t head_size) {
  return type == ElementType::kFloat32 ? AllEqual<float>(row, before, head_size)
                                       : AllEqual<uint16_t>(row, before, head_size);
}

void CountStatistics(const StatisticsCall& call, const Parallel& parallel, int64_t* statistics) {
  const int64_t kv_heads = call.geometry.kv_heads;
  ParallelFor(parallel, kv_heads, [&](int64_t kv_head) {
    Counts total{};
    for (int64_t b = 0; b < call.geometry.batch; ++b) {
      const Counts counts = CountHead(call, b, b * kv_heads + kv_head);
      for (size_t column = 0; column < kColumns; ++column) total[column] += counts[column];
    }
    if (call.left_out != nullptr) total[5] += call.geometry.head_size * call.left_out[kv_head];
    std::copy(total.begin(), total.end(), statistics + kv_head * kColumns);
  });
}

}  // namespace deltallm
