// Rounding, coding and sealing of every instruction set against the plain one: the same bytes, whatever comes in.
#include "kernels/packed_coding.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/select_kernels.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

const PackedCoding& Plain() { return kScalarPackedCoding; }

int64_t Padded(int64_t size) { return (size + 3) / 4 * 4; }

/// Values whose magnitudes differ from row to row, some of them not finite.
std::vector<float> RandomRow(Random& random, int64_t size) {
  const float magnitude = std::pow(10.0f, static_cast<float>(random.Int(-9, 7)));
  std::vector<float> x = random.Normals(size);
  for (float& value : x) value *= magnitude;
  const auto at = static_cast<size_t>(random.Int(0, size - 1));
  if (random.Int(0, 30) == 0) x[at] = -std::numeric_limits<float>::infinity();
  if (random.Int(0, 30) == 0) x[at] = std::numeric_limits<float>::quiet_NaN();
  return x;
}

DELTALLM_TEST(packed_coding, rows_are_the_same_on_every_set) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    const PackedCoding& coding = *kernels->coding;
    for (int trial = 0; trial < 2000; ++trial) {
      const int64_t size = random.Int(1, 99);
      const std::vector<float> x = RandomRow(random, size);
      PackedRow expected, found;
      Plain().round_row(x.data(), size, &expected);
      coding.round_row(x.data(), size, &found);
      EXPECT(found.scale == expected.scale, kernels->isa, " ", size);
      EXPECT(std::memcmp(found.codes, expected.codes, static_cast<size_t>(Padded(size))) == 0, kernels->isa, " ", size);

      std::vector<float> decoded(static_cast<size_t>(size)), again(decoded);
      Plain().decode_row(expected, size, decoded.data());
      coding.decode_row(expected, size, again.data());
      EXPECT(std::memcmp(again.data(), decoded.data(), decoded.size() * sizeof(float)) == 0, kernels->isa, " ", size);
      const auto tokens = static_cast<float>(random.Int(2, 9));
      std::vector<float> mean = random.Normals(Padded(size)), other = mean;
      PackedRow rows[2], others[2];
      Plain().merge_value(expected, tokens, size, mean.data(), &rows[0], &rows[1]);
      coding.merge_value(expected, tokens, size, other.data(), &others[0], &others[1]);
      EXPECT(std::memcmp(other.data(), mean.data(), mean.size() * sizeof(float)) == 0, kernels->isa, " ", size);
      for (int i = 0; i < 2; ++i) {
        EXPECT(others[i].scale == rows[i].scale, kernels->isa, " ", size);
        EXPECT(std::memcmp(others[i].codes, rows[i].codes, mean.size()) == 0, kernels->isa, " ", size);
      }
    }
  }
}

DELTALLM_TEST(packed_coding, what_is_held_is_the_same_on_every_set) {
  Random random;
  int64_t rows_held = 0, channels_held = 0, channels = 0;
  for (const Kernels* kernels : AvailableKernels()) {
    const PackedCoding& coding = *kernels->coding;
    for (int trial = 0; trial < 1000; ++trial) {
      const int64_t size = random.Int(1, 99);
      const std::vector<float> previous = random.Normals(size);
      std::vector<float> key = previous;
      for (float& value : key) value += 0.3f * random.Normal();
      if (trial % 50 == 0) key.back() = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> weight = random.Normals(size);
      const float* weights = random.Int(0, 1) == 1 ? weight.data() : nullptr;
      const RowRule rule = random.Int(0, 1) == 1 ? RowRule::kRelative : RowRule::kAbsolute;
      const auto threshold = static_cast<float>(random.Int(1, 100)) / 100.0f;
      const bool held = HoldsRow(key.data(), previous.data(), size, threshold, weights, rule);
      EXPECT(coding.holds_row(key.data(), previous.data(), size, threshold, weights, rule) == held, kernels->isa);
      rows_held += held ? 1 : 0;

      std::vector<float> limit(static_cast<size_t>(size));
      for (float& value : limit) value = 0.3f * std::fabs(random.Normal());
      const int64_t step = random.Int(0, 1);
      std::vector<float> expected(key), found(key);
      const int64_t count = HoldElements(key.data(), previous.data(), size, limit.data(), step, expected.data());
      // In place, as the caches use it.
      const int64_t other = coding.hold_elements(found.data(), previous.data(), size, limit.data(), step, found.data());
      EXPECT(count == other, kernels->isa, " ", size, ": ", other, " for ", count);
      EXPECT(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0, kernels->isa, " ", size);
      channels_held += count;
      channels += size;
    }
  }
  EXPECT(rows_held > 100 && channels_held > channels / 10, "a test in which nothing is held: ", rows_held);
}

DELTALLM_TEST(packed_coding, a_value_row_replaces_its_own_bytes_only) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (int trial = 0; trial < 200; ++trial) {
      const int64_t padded = Padded(random.Int(1, 99));
      const int64_t r = random.Int(0, 3);
      std::vector<uint8_t> group(static_cast<size_t>(4 * padded));
      for (uint8_t& byte : group) byte = static_cast<uint8_t>(random.Int(0, 255));
      std::vector<int8_t> codes(static_cast<size_t>(padded)), read(codes);
      for (int8_t& code : codes) code = static_cast<int8_t>(random.Int(-128, 127));
      std::vector<uint8_t> expected = group;
      for (int64_t c = 0; c < padded; ++c) {
        expected[static_cast<size_t>(4 * c + r)] = static_cast<uint8_t>(codes[static_cast<size_t>(c)]);
      }
      kernels->coding->write_value(codes.data(), padded, group.data(), r);
      EXPECT(group == expected, kernels->isa, " ", padded, " ", r);
      kernels->coding->read_value(group.data(), r, padded, read.data());
      EXPECT(read == codes, kernels->isa, " ", padded, " ", r);
    }
  }
}

/// Tiles as a damaged buffer may hold them: any codes, scales of either sign, now and then not finite.
std::vector<uint8_t> RandomTiles(Random& random, int64_t rows, int64_t padded) {
  const int64_t tile_bytes = 16 * (padded + 4);
  std::vector<uint8_t> tiles(static_cast<size_t>((rows + 15) / 16 * tile_bytes));
  for (uint8_t& byte : tiles) byte = static_cast<uint8_t>(random.Int(0, 255));
  const bool all_finite = random.Int(0, 2) > 0;
  for (size_t tile = 0; tile < tiles.size(); tile += static_cast<size_t>(tile_bytes)) {
    for (size_t r = 0; r < 16; ++r) {
      auto scale = static_cast<uint16_t>(random.Int(0, 0x7bff) | random.Int(0, 1) << 15);
      if (!all_finite && random.Int(0, 99) == 0) scale = 0x7c00;
      if (random.Int(0, 20) == 0) scale = static_cast<uint16_t>(scale & 0x8003);
      std::memcpy(tiles.data() + tile + static_cast<size_t>(16 * padded) + 2 * r, &scale, sizeof scale);
    }
  }
  return tiles;
}

DELTALLM_TEST(packed_coding, blocks_are_the_same_on_every_set) {
  Random random;
  for (const Kernels* kernels : AvailableKernels()) {
    for (int trial = 0; trial < 120; ++trial) {
      const int64_t size = random.Int(1, 99);
      const int64_t padded = Padded(size);
      const int64_t first = random.Int(0, 40);
      // The buffer ends with the last row's tile: what lies behind it must not be read (with the sanitizers on).
      const std::vector<uint8_t> tiles = RandomTiles(random, first + kBlockRows, padded);
      const int64_t bytes = kBlockRows * std::max(padded / 2 + 4, (17 * padded + 31) / 32 + 2);
      std::vector<uint8_t> expected(static_cast<size_t>(bytes), 0xAA), found(static_cast<size_t>(bytes), 0x55);
      Plain().seal_keys(tiles.data(), first, size, expected.data(), bytes);
      kernels->coding->seal_keys(tiles.data(), first, size, found.data(), bytes);
      EXPECT(found == expected, kernels->isa, " keys, size ", size, " from row ", first);
      Plain().seal_values(tiles.data(), first, size, expected.data(), bytes);
      kernels->coding->seal_values(tiles.data(), first, size, found.data(), bytes);
      EXPECT(found == expected, kernels->isa, " values, size ", size, " from row ", first);
    }
  }
}

}  // namespace
}  // namespace deltallm::test
