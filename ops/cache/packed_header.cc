#include "cache/packed_header.h"

#include <array>

#include "cache/packed_rows.h"

namespace deltallm {
namespace {

using Fields = std::array<uint16_t, PackedLayout::kHeaderSlots>;

Fields Pack(const PackedLayout& layout, const PackedState& state) {
  const auto low = [](int64_t n) { return static_cast<uint16_t>(n & 0xffff); };
  return {HeaderVersion(layout.format), low(state.coded_tokens),     low(state.coded_tokens >> 16),
          low(state.coded_rows),        low(state.coded_rows >> 16), LayoutCheck(layout)};
}

int64_t HeaderRows(const PackedLayout& layout) { return std::min(layout.rows(), PackedLayout::kHeaderSlots); }

}  // namespace

PackedHeader ReadHeader(const PackedLayout& layout, const uint8_t* value_slab) {
  Fields fields = Pack(layout, {});
  const int64_t rows = HeaderRows(layout);
  for (int64_t slot = 0; slot < rows; ++slot) fields[static_cast<size_t>(slot)] = ReadTag(layout, value_slab, slot);
  const auto number = [](uint16_t low, uint16_t high) { return int64_t{low} + (int64_t{high} << 16); };
  return {fields[0], fields[5], {number(fields[1], fields[2]), number(fields[3], fields[4])}};
}

void WriteHeader(const PackedLayout& layout, const PackedState& state, uint8_t* value_slab) {
  const Fields fields = Pack(layout, state);
  const int64_t rows = HeaderRows(layout);
  for (int64_t slot = 0; slot < rows; ++slot) WriteTag(layout, value_slab, slot, fields[static_cast<size_t>(slot)]);
}

}  // namespace deltallm
