// Scores on 8-bit integers, with a step per row: a row's codes are rint(x / step), step = max |x| / 127.
// Part of prefill_avx512_bf16.cc, to be included there only.
//
//     query tile   [6][D4] int8, D4 = D rounded up to a multiple of 4; then [6] steps; then [6] offsets
//     key panel    [D4/4][64 keys][4 channels] uint8, code + 128; then [64] steps

/// max |x| of a row as its bits, which order like the numbers; a NaN is above infinity.
template <typename T>
inline uint32_t LargestMagnitudeBits(const T* row, int64_t size) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t c = 0; c < size; c += kLanes) {
    const __m512i bits = _mm512_castps_si512(LoadUpTo(row, c, size));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
  }
  return static_cast<uint32_t>(_mm512_reduce_max_epu32(largest));
}

struct Step {
  float step;     ///< NaN for a row that is not finite: so is every score with it.
  float inverse;  ///< 0 where there are no codes but 0
};

template <typename T>
inline Step StepOf(const T* row, int64_t size) {
  const uint32_t bits = LargestMagnitudeBits(row, size);
  if (bits >= 0x7F800000u) return {__builtin_nanf(""), 0.0f};
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  // Below this the inverse would be infinite; such a row's scores are 0 to any precision.
  if (largest < 1e-30f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

/// Codes of 16 channels from c on. In a row that is not finite they may be any; its step makes every score NaN.
template <typename T>
inline __m512i CodesAt(const T* row, int64_t c, int64_t size, float inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(LoadUpTo(row, c, size), _mm512_set1_ps(inverse)));
}

int64_t Int8QueryTileBytes(int64_t head_size) { return RoundUp(kTileRows * (RoundUp(head_size, 4) + 8), 64); }
int64_t Int8KeyPanelBytes(int64_t head_size) { return kPanelKeys * (RoundUp(head_size, 4) + 4); }

void PackInt8Query(const float* rows, int64_t count, int64_t head_size, void* tile) {
  const int64_t stride = RoundUp(head_size, 4);
  auto* codes = static_cast<int8_t*>(tile);
  auto* steps = reinterpret_cast<float*>(codes + kTileRows * stride);
  auto* offsets = reinterpret_cast<int32_t*>(steps + kTileRows);
  for (int64_t r = 0; r < kTileRows; ++r) {
    const float* row = rows + r * head_size;
    const Step step = r < count ? StepOf(row, head_size) : Step{0.0f, 0.0f};
    __m512i sum = _mm512_setzero_si512();
    for (int64_t c = 0; c < stride; c += kLanes) {
      const bool coded = r < count && step.inverse != 0.0f;
      const __m512i code = coded ? CodesAt(row, c, head_size, step.inverse) : _mm512_setzero_si512();
      sum = _mm512_add_epi32(sum, code);
      _mm_mask_storeu_epi8(codes + r * stride + c, Vec::Mask(Min(kLanes, stride - c)), _mm512_cvtsepi32_epi8(code));
    }
    steps[r] = step.step;
    // Takes the 128 of the keys' codes out again.
    offsets[r] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

/// The codes + 128 of 64 channels from c on.
template <typename T>
inline __m512i KeyCodes(const T* row, int64_t c, int64_t size, float inverse) {
  const __m512i ab = _mm512_packs_epi32(CodesAt(row, c, size, inverse), CodesAt(row, c + kLanes, size, inverse));
  const __m512i cd =
      _mm512_packs_epi32(CodesAt(row, c + 2 * kLanes, size, inverse), CodesAt(row, c + 3 * kLanes, size, inverse));
  // Packing works within quarters: dword q of quarter i belongs at 4·q + i.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i codes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(ab, cd));
  return _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
}

template <typename T>
inline void PackInt8KeysOf(const void* const* rows, int64_t count, int64_t head_size, uint8_t* panel) {
  const int64_t quads = RoundUp(head_size, 4) / 4;
  auto* steps = reinterpret_cast<float*>(panel + quads * 4 * kPanelKeys);
  for (int64_t j = 0; j < kPanelKeys; j += kLanes) {
    float inverse[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      const Step step = j + i < count ? StepOf(static_cast<const T*>(rows[j + i]), head_size) : Step{0.0f, 0.0f};
      inverse[i] = step.inverse;
      steps[j + i] = step.step;
    }
    for (int64_t quad = 0; quad < quads; quad += kLanes) {
      __m512 tile[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        tile[i] =
            j + i < count
                ? _mm512_castsi512_ps(KeyCodes(static_cast<const T*>(rows[j + i]), 4 * quad, head_size, inverse[i]))
                : Vec::Zero();
      }
      Vec::Transpose(tile);
      const int64_t width = Min(kLanes, quads - quad);
      uint8_t* out = panel + (quad * kPanelKeys + j) * 4;
      for (int64_t i = 0; i < width; ++i) _mm512_storeu_ps(out + i * kPanelKeys * 4, tile[i]);
    }
  }
}

void PackInt8Keys(const void* const* rows, ElementType type, int64_t count, int64_t head_size, void* panel) {
  if (type == ElementType::kFloat32) {
    PackInt8KeysOf<float>(rows, count, head_size, static_cast<uint8_t*>(panel));
  } else {
    PackInt8KeysOf<uint16_t>(rows, count, head_size, static_cast<uint8_t*>(panel));
  }
}

/// sum += keys · codes, four channels per lane. Not the intrinsic: g++ 12 spills sums around it, at half the speed.
inline __m512i DotProduct(__m512i sum, __m512i keys, __m512i codes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(keys), "v"(codes));
  return sum;
}

template <int kRows, int kVectors>
inline void Int8ScoresOf(const int8_t* tile, const uint8_t* panel, int64_t channels, float* scores,
                         int64_t score_stride) {
  const auto* query_steps = reinterpret_cast<const float*>(tile + kTileRows * channels);
  const auto* offsets = reinterpret_cast<const int32_t*>(query_steps + kTileRows);
  const auto* key_steps = reinterpret_cast<const float*>(panel + channels * kPanelKeys);
  __m512i sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[i][v] = _mm512_set1_epi32(offsets[i]);
  }
  for (int64_t c = 0; c < channels; c += 4) {
    __m512i keys[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) keys[v] = _mm512_loadu_si512(panel + c * kPanelKeys + v * 64);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const __m512i codes = Broadcast32(tile + i * channels + c);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = DotProduct(sums[i][v], keys[v], codes);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
    const __m512 step = _mm512_set1_ps(query_steps[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][v]), _mm512_loadu_ps(key_steps + v * kLanes));
      Vec::Store(scores + i * score_stride + v * kLanes, _mm512_mul_ps(score, step));
    }
  }
}

template <int kVectors = 1>
inline void Int8ScoresUpTo(int64_t rows, int64_t vectors, const int8_t* tile, const uint8_t* panel, int64_t channels,
                           float* scores, int64_t score_stride) {
  if constexpr (kVectors < kMostVectors) {
    if (vectors > kVectors) {
      Int8ScoresUpTo<kVectors + 1>(rows, vectors, tile, panel, channels, scores, score_stride);
      return;
    }
  }
  if (rows > kTileRows / 2) {
    Int8ScoresOf<kTileRows, kVectors>(tile, panel, channels, scores, score_stride);
  } else {
    Int8ScoresOf<kTileRows / 2, kVectors>(tile, panel, channels, scores, score_stride);
  }
}

void Int8Scores(const void* tile, int64_t rows, const void* panel, int64_t columns, int64_t head_size, float* scores,
                int64_t score_stride) {
  const auto* keys = static_cast<const uint8_t*>(panel);
  for (int64_t j = 0; j < columns; j += kPanelKeys, keys += Int8KeyPanelBytes(head_size)) {
    Int8ScoresUpTo(rows, (Min(columns - j, kPanelKeys) + kLanes - 1) / kLanes, static_cast<const int8_t*>(tile), keys,
                   RoundUp(head_size, 4), scores + j, score_stride);
  }
}
