// Single rows: their rounding to 8 bits, and what holds them; and the table of all this. Included after
// packed_coding_vector.h, hold_rows.h and packed_coding_blocks.h.

constexpr int32_t kMostRowCode = 127;

/// Bits of |x|; more than kLargestFinite where x is not finite.
inline Ints MagnitudeBits(const Floats& x) { return BitsAs<Ints>(x) & 0x7fffffff; }

inline int32_t LargestMagnitude(const float* x, int64_t count) {
  Ints largest = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const Ints bits = MagnitudeBits(Load<Floats>(x + c));
    largest = bits > largest ? bits : largest;
  }
  if (c < count) {
    const Ints bits = MagnitudeBits(LoadFirst<Floats>(x + c, count - c));
    largest = bits > largest ? bits : largest;
  }
  return LargestLane(largest);
}

inline uint16_t RowScale(int32_t largest_bits) {
  if (largest_bits > kLargestFinite) return kHalfNaN;
  const auto largest = BitsAs<float>(largest_bits);
  uint16_t scale = ToHalf(largest / 127.0f);
  // A normal scale is within 2^-11 of m / 127, so never that far below it.
  if (scale < kSmallestNormalHalf && ToFloat(scale) < largest / 127.5f) ++scale;
  return scale >= kHalfInfinity ? kHalfNaN : scale;
}

/// With a normal scale no code is beyond ±127, so only others are clamped.
template <bool kClamp>
inline void WriteCodes(const float* x, int64_t head_size, float scale, int8_t* codes) {
  const auto write = [&](const Floats& part, int64_t c) {
    Ints bits = BitsAs<Ints>(part / scale + kRoundingOffset);
    if (kClamp) {
      constexpr int32_t kLeast = kRoundingBits - kMostRowCode;
      constexpr int32_t kMost = kRoundingBits + kMostRowCode;
      bits = bits > kMost ? Ints{} + kMost : bits;
      bits = bits < kLeast ? Ints{} + kLeast : bits;
    }
    StoreBytes(codes + c, bits);
  };
  int64_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) write(Load<Floats>(x + c), c);
  // A row's memory reaches to the largest head size, so there is room for the last vector's zeros.
  static_assert(kMostPackedHeadSize % 64 == 0, "rows end with a vector");
  if (c < head_size) write(LoadFirst<Floats>(x + c, head_size - c), c);
}

void RoundRow(const float* x, int64_t head_size, PackedRow* row) {
  const uint16_t scale = RowScale(LargestMagnitude(x, head_size));
  row->scale = scale;
  if (scale == 0 || scale == kHalfNaN) {
    __builtin_memset(row->codes, 0, static_cast<size_t>(PaddedSize(head_size)));
  } else if (scale < kSmallestNormalHalf) {
    WriteCodes<true>(x, head_size, ToFloat(scale), row->codes);
  } else {
    WriteCodes<false>(x, head_size, ToFloat(scale), row->codes);
  }
}

void DecodeRow(const PackedRow& row, int64_t count, float* out) {
  const float scale = ToFloat(row.scale);
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    Store(out + c, __builtin_convertvector(LoadSigned(row.codes + c), Floats) * scale);
  }
  for (; c < count; ++c) out[c] = static_cast<float>(row.codes[c]) * scale;
}

void ReadValue(const uint8_t* group, int64_t r, int64_t channels, int8_t* codes) {
  int64_t c = 0;
  const int shift = static_cast<int>(8 * r);
  for (; c + kLanes <= channels; c += kLanes) {
    const Ints words = Load<Ints>(group + 4 * c);
    StoreBytes(codes + c, words >> shift);
  }
  for (; c < channels; ++c) codes[c] = static_cast<int8_t>(group[4 * c + r]);
}

void WriteValue(const int8_t* codes, int64_t channels, uint8_t* group, int64_t r) {
  // Every fourth byte is ours: the words are replaced whole, with the other rows' bytes as they were.
  const int shift = static_cast<int>(8 * r);
  const auto others = static_cast<int32_t>(~(0xffu << shift));
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Ints code = LoadUnsigned(codes + c);
    Store(group + 4 * c, (Load<Ints>(group + 4 * c) & others) | code << shift);
  }
  for (; c < channels; ++c) group[4 * c + r] = static_cast<uint8_t>(codes[c]);
}

int64_t HoldElementsOf(const float* key, const float* previous, int64_t head_size, const float* threshold,
                       int64_t threshold_step, float* held) {
  const Floats one_threshold = Floats{} + (head_size > 0 ? threshold[0] : 0.0f);
  const auto hold = [&](const Floats& x, const Floats& before, const Floats& limit, Floats* out) -> Ints {
    const Floats difference = x - before;
    // Written so that a NaN difference transmits.
    const Ints holds = BitsAs<Floats>(MagnitudeBits(difference)) <= limit;
    *out = holds ? before : x;
    return holds;
  };
  Ints count = {};
  Floats out;
  int64_t c = 0;
  for (; c + kLanes <= head_size; c += kLanes) {
    const Floats limit = threshold_step == 0 ? one_threshold : Load<Floats>(threshold + c);
    count -= hold(Load<Floats>(key + c), Load<Floats>(previous + c), limit, &out);
    Store(held + c, out);
  }
  int64_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane) all += count[lane];
  if (c < head_size) {
    const int64_t n = head_size - c;
    const Floats limit = threshold_step == 0 ? one_threshold : LoadFirst<Floats>(threshold + c, n);
    const Ints holds = hold(LoadFirst<Floats>(key + c, n), LoadFirst<Floats>(previous + c, n), limit, &out);
    StoreFirst(held + c, out, n);
    for (int64_t lane = 0; lane < n; ++lane) all -= holds[lane];
  }
  return all;
}

void MergeValue(const PackedRow& value, float tokens, int64_t head_size, float* mean, PackedRow* row,
                PackedRow* residual) {
  const int64_t channels = PaddedSize(head_size);
  const auto decoded = [](const PackedRow& x, float scale, int64_t c) {
    return static_cast<float>(x.codes[c]) * scale;
  };
  const float scale = ToFloat(value.scale);
  for (int64_t c = 0; c < channels; ++c) mean[c] += (decoded(value, scale, c) - mean[c]) / tokens;
  RoundRow(mean, head_size, row);
  const float row_scale = ToFloat(row->scale);
  for (int64_t c = 0; c < channels; ++c) mean[c] -= decoded(*row, row_scale, c);
  RoundRow(mean, head_size, residual);
  const float rest_scale = ToFloat(residual->scale);
  for (int64_t c = 0; c < channels; ++c) mean[c] = decoded(*row, row_scale, c) + decoded(*residual, rest_scale, c);
}

constexpr PackedCoding MakePackedCoding(const char* isa) {
  return {isa,        RoundRow,       DecodeRow,  ReadValue, WriteValue,
          HoldsRowOf, HoldElementsOf, MergeValue, SealKeys,  SealValues};
}
