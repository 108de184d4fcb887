// Sealing 128 rows into an int4 block. Included after packed_coding_vector.h.
//
// A vector holds four channels of some rows (keys) or four rows of some channels (values), as they lie in the tiles: so
// its lanes belong to four groups, which are coded together.

constexpr int32_t kMostBlockCode = 15;
constexpr int64_t kTileGroup = 4 * kTileRows;    // codes of four channels in a key tile
constexpr int64_t kBlockGroup = 4 * kBlockRows;  // and of 128 rows
constexpr int kGroupsPerVector = kLanes / 4;

/// How four groups are coded; their offsets and divisors repeat along the lanes. Where all codes are 0, the divisor is
/// infinite.
struct GroupCodes {
  uint16_t zero[4];
  uint16_t scale[4];
  Floats offset;
  Floats divisor;
};

inline Floats Repeat(const float* four) {
  Floats x;
  for (int i = 0; i < kGroupsPerVector; ++i) __builtin_memcpy(reinterpret_cast<char*>(&x) + 16 * i, four, 16);
  return x;
}

/// Of lanes that are the same modulo four, the least and the largest.
inline void ReduceToFour(const Floats& least, const Floats& most, float* low, float* high) {
  FourFloats a = FourLanes(least, 0);
  FourFloats b = FourLanes(most, 0);
  for (int i = 1; i < kGroupsPerVector; ++i) {
    const FourFloats x = FourLanes(least, i);
    const FourFloats y = FourLanes(most, i);
    a = x < a ? x : a;
    b = y > b ? y : b;
  }
  // Which of 0 and −0 was found depends on the order; adding 0 makes both 0.
  Store(low, a + 0.0f);
  Store(high, b + 0.0f);
}

inline void MakeGroupCodes(const float* least, const float* most, const bool* finite, GroupCodes* groups) {
  float offset[4];
  float divisor[4];
  for (int i = 0; i < 4; ++i) {
    groups->zero[i] = ToHalf(least[i]);
    offset[i] = ToFloat(groups->zero[i]);
    groups->scale[i] = ToHalf((most[i] - offset[i]) / 15.0f);
    divisor[i] = ToFloat(groups->scale[i]);
    if (!finite[i] || !IsFiniteHalf(groups->zero[i]) || !IsFiniteHalf(groups->scale[i])) {
      groups->zero[i] = kHalfNaN;
      groups->scale[i] = 0;
      offset[i] = divisor[i] = 0.0f;
    }
    if (divisor[i] == 0.0f) divisor[i] = __builtin_inff();
  }
  groups->offset = Repeat(offset);
  groups->divisor = Repeat(divisor);
}

/// Of finite x.
inline Ints BlockCodes(const Floats& x, const GroupCodes& groups) {
  // Bits of floats order like the floats, those of negative ones below all others.
  Ints bits = BitsAs<Ints>((x - groups.offset) / groups.divisor + kRoundingOffset);
  bits = bits < kRoundingBits ? Ints{} + kRoundingBits : bits;
  bits = bits > kRoundingBits + kMostBlockCode ? Ints{} + (kRoundingBits + kMostBlockCode) : bits;
  return bits - kRoundingBits;
}

void SealKeys(const uint8_t* tiles, int64_t first, int64_t head_size, uint8_t* block, int64_t block_bytes) {
  const int64_t channels = PaddedSize(head_size);
  const int64_t tile_bytes = kTileRows * (channels + 4);
  const uint8_t* tile = tiles + first / kTileRows * tile_bytes;
  const int64_t skipped = first % kTileRows;
  const int64_t tiles_read = kBlockRows / kTileRows + (skipped > 0 ? 1 : 0);
  uint8_t* scales = block + kBlockRows / 2 * channels;
  uint8_t* zeros = scales + 2 * channels;
  uint8_t* tags = zeros + 2 * channels;
  uint8_t* pad = tags + 2 * kBlockRows;
  __builtin_memset(pad, 0, static_cast<size_t>(block + block_bytes - pad));

  float row_scale[kBlockGroup];  // each four times
  bool all_finite = true;
  for (int64_t j = 0; j < kBlockRows; ++j) {
    const uint8_t* halves = tile + (skipped + j) / kTileRows * tile_bytes + kTileRows * channels;
    const uint16_t scale = LoadHalf(halves, (skipped + j) % kTileRows);
    all_finite = all_finite && IsFiniteHalf(scale);
    Store(row_scale + 4 * j, FourFloats{} + ToFloat(scale));
    Store(tags + 2 * j, LoadHalf(halves, kTileRows + (skipped + j) % kTileRows));
  }
  // One row that is not finite spoils every channel.
  if (!all_finite) __builtin_memset(row_scale, 0, sizeof row_scale);
  const bool finite[4] = {all_finite, all_finite, all_finite, all_finite};
  for (int64_t g = 0; g < channels / 4; ++g) {
    // Only these rows: a tile holds 16 rows of four channels in one piece.
    uint8_t stored[kBlockGroup + kTileGroup];
    for (int64_t i = 0; i < tiles_read; ++i) {
      __builtin_memcpy(stored + i * kTileGroup, tile + i * tile_bytes + g * kTileGroup, kTileGroup);
    }
    float x[kBlockGroup];
    Floats least = Floats{} + __builtin_inff();
    Floats most = Floats{} - __builtin_inff();
    for (int64_t i = 0; i < kBlockGroup; i += kLanes) {
      const Ints codes = LoadUnsigned(stored + 4 * skipped + i) - 128;
      const Floats decoded = __builtin_convertvector(codes, Floats) * Load<Floats>(row_scale + i);
      least = decoded < least ? decoded : least;
      most = decoded > most ? decoded : most;
      Store(x + i, decoded);
    }
    float low[4];
    float high[4];
    ReduceToFour(least, most, low, high);
    GroupCodes groups;
    MakeGroupCodes(low, high, finite, &groups);
    Store(scales + 8 * g, Load<uint64_t>(groups.scale));
    Store(zeros + 8 * g, Load<uint64_t>(groups.zero));
    for (int64_t z = 0; z < 4; ++z) {
      const float* rows = x + z * 2 * kTileGroup;
      uint8_t* codes = block + (z * channels / 4 + g) * kTileGroup;
      for (int64_t i = 0; i < kTileGroup; i += kLanes) {
        const Ints low_codes = BlockCodes(Load<Floats>(rows + i), groups);
        StoreBytes(codes + i, low_codes | BlockCodes(Load<Floats>(rows + kTileGroup + i), groups) << 4);
      }
    }
  }
  for (int64_t c = head_size; c < channels; ++c) {
    Store(scales + 2 * c, uint16_t{0});
    Store(zeros + 2 * c, uint16_t{0});
    for (int64_t z = 0; z < 4; ++z) {
      uint8_t* codes = block + (z * channels + c / 4 * 4) * kTileRows + c % 4;
      for (int64_t r = 0; r < kTileRows; ++r) codes[4 * r] = 0;
    }
  }
}

/// Four value rows from row `first` of the tiles, as they would lie in one group: [D'][4].
inline void GatherFourValues(const uint8_t* tiles, int64_t first, int64_t channels, int8_t* four, float* scales,
                             bool* finite) {
  const int64_t tile_bytes = kTileRows * (channels + 4);
  const auto group = [&](int64_t row) {
    return tiles + row / kTileRows * tile_bytes + row % kTileRows / 4 * 4 * channels;
  };
  const int64_t shift = 8 * (first % 4);
  if (shift == 0) {
    __builtin_memcpy(four, group(first), static_cast<size_t>(4 * channels));
  } else {
    const uint8_t* low = group(first);
    const uint8_t* high = group(first + 3);
    for (int64_t c = 0; c < channels; ++c) {
      Store(four + 4 * c, Load<uint32_t>(low + 4 * c) >> shift | Load<uint32_t>(high + 4 * c) << (32 - shift));
    }
  }
  for (int64_t r = 0; r < 4; ++r) {
    const uint8_t* halves = tiles + (first + r) / kTileRows * tile_bytes + kTileRows * channels;
    const uint16_t scale = LoadHalf(halves, (first + r) % kTileRows);
    finite[r] = IsFiniteHalf(scale);
    scales[r] = finite[r] ? ToFloat(scale) : 0.0f;
  }
}

void SealValues(const uint8_t* tiles, int64_t first, int64_t head_size, uint8_t* block, int64_t block_bytes) {
  const int64_t channels = PaddedSize(head_size);
  uint8_t* scales = block + kBlockRows / 2 * channels;
  uint8_t* zeros = scales + 2 * kBlockRows;
  uint8_t* pad = zeros + 2 * kBlockRows;
  __builtin_memset(pad, 0, static_cast<size_t>(block + block_bytes - pad));

  for (int64_t j = 0; j < kBlockRows; j += 8) {
    alignas(64) int8_t stored[2][4 * kMostPackedHeadSize];
    Floats row_scale[2];
    GroupCodes groups[2];
    for (int64_t half = 0; half < 2; ++half) {
      int8_t* codes = stored[half];
      float scale[4];
      bool finite[4];
      GatherFourValues(tiles, first + j + 4 * half, channels, codes, scale, finite);
      // Pad channels must not count.
      for (int64_t c = head_size; c < channels; ++c) __builtin_memcpy(codes + 4 * c, codes, 4);
      row_scale[half] = Repeat(scale);
      Floats least = Floats{} + __builtin_inff();
      Floats most = Floats{} - __builtin_inff();
      for (int64_t i = 0; i < 4 * channels; i += kLanes) {
        const Floats x = __builtin_convertvector(LoadSigned(codes + i), Floats) * row_scale[half];
        least = x < least ? x : least;
        most = x > most ? x : most;
      }
      float low[4];
      float high[4];
      ReduceToFour(least, most, low, high);
      MakeGroupCodes(low, high, finite, &groups[half]);
      Store(scales + 2 * (j + 4 * half), Load<uint64_t>(groups[half].scale));
      Store(zeros + 2 * (j + 4 * half), Load<uint64_t>(groups[half].zero));
    }
    uint8_t* target = block + j / 2 * channels;
    for (int64_t i = 0; i < 4 * channels; i += kLanes) {
      const Floats low = __builtin_convertvector(LoadSigned(stored[0] + i), Floats) * row_scale[0];
      const Floats high = __builtin_convertvector(LoadSigned(stored[1] + i), Floats) * row_scale[1];
      StoreBytes(target + i, BlockCodes(low, groups[0]) | BlockCodes(high, groups[1]) << 4);
    }
    __builtin_memset(target + 4 * head_size, 0, static_cast<size_t>(4 * (channels - head_size)));
  }
}
