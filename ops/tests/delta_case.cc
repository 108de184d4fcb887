#include "tests/delta_case.h"

namespace deltallm::test {
namespace {

float Stored(float value, ElementType type) {
  return type == ElementType::kFloat16 ? HalfToFloat(FloatToHalf(value)) : value;
}

size_t At(int64_t index) { return static_cast<size_t>(index); }

/// The keys of one (batch row, KV head) after rotation and storage, [N, D].
std::vector<float> StoredKeys(const DeltaCase& c, int64_t b, int64_t kv) {
  const int64_t size = c.head_size;
  std::vector<float> keys(At(c.tokens * size), 0.0f);
  for (int64_t t = c.start[At(b)]; t < c.length[At(b)]; ++t) {
    const float* row = &c.key[At(((b * c.tokens + t) * c.attributes.kv_num_heads + kv) * size)];
    float* key = &keys[At(t * size)];
    const int64_t table = (t - c.start[At(b)]) * c.rotary_half;
    RotateRow(row, size, c.cos.data() + table, c.sin.data() + table, c.rotary_half, c.attributes.rotary_interleaved,
              key);
    for (int64_t i = 0; i < size; ++i) key[i] = Stored(key[i], c.cache_type);
  }
  return keys;
}

/// Section 2 over the real tokens.
std::vector<float> HeldKeysOf(const DeltaCase& c, int64_t b, int64_t kv, const std::vector<float>& keys) {
  const int64_t size = c.head_size;
  const bool per_channel = static_cast<int64_t>(c.threshold.size()) > c.attributes.kv_num_heads;
  std::vector<float> held = keys;
  for (int64_t t = c.start[At(b)]; t < c.length[At(b)]; ++t) {
    const int64_t position = t - c.start[At(b)];
    const int64_t refresh = c.attributes.hold.refresh;
    if (position == 0 || position < c.attributes.attention.sinks || (refresh > 0 && position % refresh == 0)) continue;
    const float* key = &keys[At(t * size)];
    const float* before = &held[At((t - 1) * size)];
    float* now = &held[At(t * size)];
    if (c.attributes.hold.row_granularity) {
      double change = 0.0;
      double norm = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        const double w = c.row_weight.empty() ? 1.0 : c.row_weight[At(kv * size + i)];
        change += std::pow(w * (double{key[i]} - before[i]), 2);
        norm += std::pow(w * double{key[i]}, 2);
      }
      const double rho = c.attributes.hold.row_rule == RowRule::kRelative ? std::sqrt(norm) : 1.0;
      if (std::sqrt(change) <= c.threshold[At(kv)] * rho) std::copy(before, before + size, now);
    } else {
      for (int64_t i = 0; i < size; ++i) {
        const float delta = key[i] - before[i];
        const float theta = c.threshold[At(per_channel ? kv * size + i : kv)];
        if (std::fabs(delta) <= theta) now[i] = before[i];
      }
    }
  }
  return held;
}

/// Section 3 for one query row; zero if it sees nothing.
void AttendOneRow(const DeltaCase& c, int64_t b, int64_t h, int64_t s, const std::vector<float>& exact,
                  const std::vector<float>& held, const std::vector<float>& values, double* output) {
  const AttentionRules& rules = c.attributes.attention;
  const int64_t size = c.head_size;
  const int64_t start = c.start[At(b)];
  const int64_t length = c.length[At(b)];
  if (s < start) return;
  // The position of padding is not defined; row 0 of the tables is.
  const int64_t table = (s < length ? s - start : 0) * c.rotary_half;
  std::vector<float> query(At(size));
  RotateRow(&c.query[At(((b * c.tokens + s) * c.attributes.num_heads + h) * size)], size, c.cos.data() + table,
            c.sin.data() + table, c.rotary_half, c.attributes.rotary_interleaved, query.data());
  const double scale = rules.scale != 0.0f ? rules.scale : 1.0 / std::sqrt(static_cast<double>(size));
  const int64_t newest = std::min(s, length - 1);
  std::vector<double> scores;
  std::vector<int64_t> rows;
  for (int64_t j = start; j <= newest; ++j) {
    if (rules.local_window > 0 && j <= s - rules.local_window) continue;
    const bool reads_exactly = j - start < rules.sinks || j > newest - rules.delta_window;
    const std::vector<float>& keys = reads_exactly ? exact : held;
    double score = 0.0;
    for (int64_t i = 0; i < size; ++i) score += double{query[At(i)]} * keys[At(j * size + i)];
    score *= scale;
    if (rules.softcap > 0.0f) score = rules.softcap * std::tanh(score / rules.softcap);
    if (!c.bias.empty()) score += c.bias[At((h * c.tokens + s) * c.tokens + j)];
    scores.push_back(score);
    rows.push_back(j);
  }
  if (rows.empty()) return;
  double top = *std::max_element(scores.begin(), scores.end());
  if (!c.head_sink.empty()) top = std::max(top, double{c.head_sink[At(h)]});
  double denominator = c.head_sink.empty() ? 0.0 : std::exp(c.head_sink[At(h)] - top);
  for (const double score : scores) denominator += std::exp(score - top);
  for (size_t n = 0; n < rows.size(); ++n) {
    const double p = std::exp(scores[n] - top) / denominator;
    for (int64_t i = 0; i < size; ++i) output[i] += p * values[At(rows[n] * size + i)];
  }
}

}  // namespace

DeltaCase RandomDeltaCase(Random& random, int64_t tokens) {
  DeltaCase c;
  c.batch = random.Int(1, 3);
  c.tokens = tokens;
  c.head_size = random.Pick<int64_t>({2, 7, 8, 12, 17, 32});
  c.attributes.kv_num_heads = random.Int(1, 3);
  c.attributes.num_heads = c.attributes.kv_num_heads * random.Pick<int64_t>({1, 2, 3, 4, 5});
  c.cache_type = random.Pick({ElementType::kFloat32, ElementType::kFloat16});
  c.attributes.rotary_interleaved = random.Int(0, 1) == 1;
  c.rotary_half = random.Int(0, c.head_size / 2);
  c.attributes.do_rotary = c.rotary_half > 0;
  AttentionRules& rules = c.attributes.attention;
  rules.scale = random.Pick({0.0f, 0.3f});
  rules.softcap = random.Pick({0.0f, 0.0f, 2.0f});
  rules.local_window = random.Pick<int64_t>({-1, -1, 1, 5, 150});
  rules.delta_window = random.Pick<int64_t>({0, 1, 3, 16, tokens});
  rules.sinks = random.Pick<int64_t>({0, 1, 4});
  HoldRules& hold = c.attributes.hold;
  hold.row_granularity = random.Int(0, 1) == 1;
  hold.row_rule = random.Pick({RowRule::kRelative, RowRule::kAbsolute});
  hold.refresh = random.Pick<int64_t>({0, 0, 1, 6});
  const int64_t kv_heads = c.attributes.kv_num_heads;
  const bool per_channel = !hold.row_granularity && random.Int(0, 1) == 1;
  c.threshold = random.Normals(per_channel ? kv_heads * c.head_size : kv_heads);
  for (float& theta : c.threshold) theta = random.Pick({0.0f, 1.0f, 1.0f}) * std::fabs(theta);
  if (hold.row_granularity && random.Int(0, 1) == 1) c.row_weight = random.Normals(kv_heads * c.head_size);
  for (int64_t b = 0; b < c.batch; ++b) {
    const bool padded = random.Int(0, 2) == 0;
    c.start.push_back(padded ? random.Int(0, tokens - 1) : 0);
    c.length.push_back(tokens);
  }
  c.query = random.Normals(c.batch * tokens * c.attributes.num_heads * c.head_size);
  c.key = random.Normals(c.batch * tokens * kv_heads * c.head_size);
  c.value = random.Normals(c.batch * tokens * kv_heads * c.head_size);
  c.cos = random.Normals(tokens * c.rotary_half);
  c.sin = random.Normals(tokens * c.rotary_half);
  if (random.Int(0, 2) == 0) c.bias = random.Normals(c.attributes.num_heads * tokens * tokens);
  if (random.Int(0, 2) == 0) c.head_sink = random.Normals(c.attributes.num_heads);
  return c;
}

namespace {

/// Of the queries [first, N).
Expected Expect(const DeltaCase& c, int64_t first) {
  const int64_t size = c.head_size;
  const int64_t heads = c.attributes.num_heads;
  const int64_t kv_heads = c.attributes.kv_num_heads;
  Expected expected;
  expected.output.assign(At(c.batch * (c.tokens - first) * heads * size), 0.0);
  expected.key.assign(At(c.batch * kv_heads * c.tokens * size), 0.0f);
  expected.value = expected.key;
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      const std::vector<float> exact = StoredKeys(c, b, kv);
      const std::vector<float> held = HeldKeysOf(c, b, kv, exact);
      std::vector<float> values(exact.size(), 0.0f);
      for (int64_t t = c.start[At(b)]; t < c.length[At(b)]; ++t) {
        const float* row = &c.value[At(((b * c.tokens + t) * kv_heads + kv) * size)];
        for (int64_t i = 0; i < size; ++i) values[At(t * size + i)] = Stored(row[i], c.cache_type);
        const bool coded = t < c.length[At(b)] - c.attributes.attention.delta_window;
        const int64_t at = ((b * kv_heads + kv) * c.tokens + t) * size;
        for (int64_t i = 0; i < size; ++i) {
          expected.key[At(at + i)] = coded ? held[At(t * size + i)] : exact[At(t * size + i)];
          expected.value[At(at + i)] = values[At(t * size + i)];
        }
      }
      for (int64_t g = 0; g < c.group(); ++g) {
        const int64_t h = kv * c.group() + g;
        for (int64_t s = first; s < c.tokens; ++s) {
          const int64_t at = ((b * (c.tokens - first) + s - first) * heads + h) * size;
          AttendOneRow(c, b, h, s, exact, held, values, &expected.output[At(at)]);
        }
      }
    }
  }
  return expected;
}

}  // namespace

Expected ExpectOneShot(const DeltaCase& c) { return Expect(c, 0); }

Expected ExpectLast(const DeltaCase& c) { return Expect(c, c.tokens - 1); }

}  // namespace deltallm::test
