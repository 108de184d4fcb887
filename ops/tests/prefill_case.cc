#include "tests/prefill_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/prefill_kernels.h"

namespace deltallm::test {
namespace {

size_t At(int64_t index) { return static_cast<size_t>(index); }

/// Elements as `type` stores them, ready to be pointed at.
std::vector<char> Stored(const std::vector<float>& values, ElementType type) {
  std::vector<char> bytes(values.size() * At(ElementSize(type)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == ElementType::kFloat32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t half = FloatToHalf(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

float Largest(const float* row, int64_t size) {
  float largest = 0.0f;
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(row[i]));
  return largest;
}

/// How far q·k may be off: float32 sums, bfloat16 operands with 8 significant bits, or operands on a grid of
/// step max/127.
double ScoreError(PrefillCompute compute, const float* query, const float* key, int64_t size) {
  double products = 0.0;
  double grid = 0.0;
  const double query_step = Largest(query, size) / 127.0;
  const double key_step = Largest(key, size) / 127.0;
  for (int64_t i = 0; i < size; ++i) {
    const double q = std::fabs(query[i]);
    const double k = std::fabs(key[i]);
    products += q * k;
    grid += q * key_step / 2 + k * query_step / 2 + query_step * key_step / 4;
  }
  const double sums = 4e-7 * static_cast<double>(size + 4) * products;
  if (compute == PrefillCompute::kBfloat16) return sums + 2.01 * 0x1p-8 * products;
  // Steps are rounded too.
  return compute == PrefillCompute::kInt8 ? sums + 1.001 * grid + 1e-6 * products : sums;
}

struct SeenKey {
  const float* key;
  const float* value;
  double tokens;
  int64_t column;  // of the bias; −1: none
};

/// Section 3 of the specification: the keys of the query at cache row `row`.
std::vector<SeenKey> KeysSeen(const PrefillCase& c, int64_t b, int64_t head, int64_t row) {
  std::vector<SeenKey> seen;
  const RowSpan& span = c.spans[At(b)];
  if (row < span.start) return seen;
  const int64_t size = c.geometry.head_size;
  const auto in_window = [&](int64_t j) { return c.rules.local_window < 0 || j > row - c.rules.local_window; };
  if (c.past != nullptr) {
    for (const std::vector<PastRow>& block : c.past->heads[At(head)]) {
      for (const PastRow& past : block) {
        if (past.cache_row >= 0 && !in_window(past.cache_row)) continue;
        seen.push_back({past.key.data(), past.value.data(), past.tokens, past.cache_row});
      }
    }
  }
  const int64_t origin = c.past == nullptr ? 0 : span.past;
  int64_t newest = std::min(row + 1, span.length);
  if (c.rules.exact_prefill && c.geometry.new_tokens > 1) newest = std::min(newest, span.past);
  for (int64_t j = std::max(span.start, origin); j < std::min(span.length, row + 1); ++j) {
    if (!in_window(j)) continue;
    const bool reads_held = !c.held.empty() && j >= span.start + c.rules.sinks && j < newest - c.rules.delta_window;
    const int64_t at = (head * c.capacity + j - origin) * size;
    seen.push_back({(reads_held ? c.held : c.key).data() + at, c.value.data() + at, 1.0, j});
  }
  return seen;
}

void ExpectRow(const PrefillCase& c, int64_t b, int64_t h, int64_t s, double* output, double* tolerance) {
  const int64_t size = c.geometry.head_size;
  const int64_t head = b * c.geometry.kv_heads + h / c.geometry.group();
  const float* query = &c.query[At(((b * c.geometry.new_tokens + s) * c.geometry.query_heads + h) * size)];
  const std::vector<SeenKey> seen = KeysSeen(c, b, head, c.spans[At(b)].past + s);
  const double scale = c.rules.scale != 0.0f ? c.rules.scale : 1.0 / std::sqrt(static_cast<double>(size));
  std::vector<double> scores;
  double error = 0.0;
  for (const SeenKey& key : seen) {
    double score = 0.0;
    for (int64_t i = 0; i < size; ++i) score += double{query[i]} * key.key[i];
    score *= scale;
    error = std::max(error, std::fabs(scale) * ScoreError(c.rules.prefill_compute, query, key.key, size));
    if (c.rules.softcap > 0.0f) score = c.rules.softcap * std::tanh(score / c.rules.softcap);
    if (!c.bias.empty() && key.column >= 0) {
      score += c.bias[At((h * c.geometry.new_tokens + s) * c.bias_columns + key.column)];
    }
    scores.push_back(score);
    if (!std::isinf(score)) error = std::max(error, 4e-7 * std::fabs(score));
  }
  double top = -std::numeric_limits<double>::infinity();
  for (const double score : scores) top = std::max(top, score);
  if (!c.head_sink.empty()) top = std::max(top, double{c.head_sink[At(h)]});
  double denominator = c.head_sink.empty() ? 0.0 : std::exp(c.head_sink[At(h)] - top);
  for (size_t j = 0; j < seen.size(); ++j) denominator += seen[j].tokens * std::exp(scores[j] - top);
  // A score that is off by e moves a weight by a factor e^e, the denominator by another. Weights and values of 8
  // significant bits add half a unit in the last place each; values left out at most v_skip of the largest weight each.
  const bool rounds = c.rules.prefill_compute != PrefillCompute::kFloat32;
  const double relative = std::expm1(2 * error) + (rounds ? 2.1 * 0x1p-8 : 0.0) + 3e-6;
  for (size_t j = 0; j < seen.size(); ++j) {
    if (std::isinf(scores[j])) continue;
    const double p = std::exp(scores[j] - top) / denominator;
    const double skipped = c.rules.v_skip * seen[j].tokens * std::exp(2 * error) / denominator;
    for (int64_t i = 0; i < size; ++i) {
      output[i] += seen[j].tokens * p * seen[j].value[i];
      tolerance[i] += (relative * seen[j].tokens * p + std::min(skipped, seen[j].tokens * p * (1 + relative))) *
                      std::fabs(seen[j].value[i]);
    }
  }
  for (int64_t i = 0; i < size; ++i) tolerance[i] += 1e-7;
}

/// Random rows, k̂ equal to k here and there as a threshold would leave it.
void FillRows(Random& random, PrefillCase& c) {
  const int64_t rows = c.geometry.batch * c.geometry.kv_heads * c.capacity;
  c.key = random.Normals(rows * c.geometry.head_size);
  c.value = random.Normals(rows * c.geometry.head_size);
  if (c.past == nullptr && random.Int(0, 2) > 0) {
    c.held = random.Normals(rows * c.geometry.head_size);
  }
  for (std::vector<float>* values : {&c.key, &c.value, &c.held}) {
    if (c.type == ElementType::kFloat32) continue;
    for (float& value : *values) value = HalfToFloat(FloatToHalf(value));
  }
}

void FillPast(Random& random, PrefillCase& c) {
  const int64_t size = c.geometry.head_size;
  for (int64_t head = 0; head < c.geometry.batch * c.geometry.kv_heads; ++head) {
    const RowSpan& span = c.spans[At(head / c.geometry.kv_heads)];
    std::vector<std::vector<PastRow>> blocks;
    // Tokens in an order of their own, as a ring keeps them; runs only where nothing depends on their position.
    const bool runs = c.rules.local_window < 0 && c.bias.empty();
    int64_t left = std::max<int64_t>(span.past - span.start, 0);
    while (left > 0) {
      const int64_t most = random.Pick<int64_t>({1, 16, 63, PastBlock::kMaxRows, PastBlock::kMaxRows});
      std::vector<PastRow> block;
      while (left > 0 && static_cast<int64_t>(block.size()) < most) {
        PastRow row;
        row.key = random.Normals(size);
        row.value = random.Normals(size);
        const int64_t tokens = runs ? std::min<int64_t>(random.Pick<int64_t>({1, 1, 2, 9}), left) : 1;
        row.tokens = static_cast<float>(tokens);
        left -= tokens;
        if (!runs || (tokens == 1 && random.Int(0, 1) == 1)) row.cache_row = span.start + left;
        block.push_back(row);
      }
      std::reverse(block.begin(), block.begin() + static_cast<int64_t>(block.size()) / 2);
      blocks.push_back(block);
      if (random.Int(0, 5) == 0) blocks.emplace_back();
    }
    c.past->heads.push_back(blocks);
  }
}

}  // namespace

void FakePast::Load(int64_t head, int64_t block, PastBlock* into) const {
  const std::vector<PastRow>& rows = heads[At(head)][At(block)];
  into->rows = static_cast<int64_t>(rows.size());
  for (size_t j = 0; j < rows.size(); ++j) {
    std::copy(rows[j].key.begin(), rows[j].key.end(), into->keys + j * rows[j].key.size());
    std::copy(rows[j].value.begin(), rows[j].value.end(), into->values + j * rows[j].value.size());
    into->tokens[j] = rows[j].tokens;
    into->cache_row[j] = rows[j].cache_row;
  }
}

std::string PrefillCase::Describe() const {
  std::string lengths;
  for (const RowSpan& span : spans) lengths += Text("(", span.start, " ", span.past, " ", span.length, ")");
  return Text("S ", geometry.new_tokens, " Hq ", geometry.query_heads, " Hkv ", geometry.kv_heads, " D ",
              geometry.head_size, " start past length ", lengths, " window ", rules.delta_window, " sinks ",
              rules.sinks, " local ", rules.local_window, " softcap ", rules.softcap, " skip ", rules.v_skip, " held ",
              !held.empty(), " exact ", rules.exact_prefill, " bias ", !bias.empty(), " past ", past != nullptr, " ",
              TypeName(type), " compute ", static_cast<int>(rules.prefill_compute), " ");
}

std::vector<float> PrefillCase::Run(const Kernels& kernels, const Parallel& parallel, SkipCounter* skipped) const {
  const std::vector<char> keys = Stored(key, type);
  const std::vector<char> held_keys = Stored(held, type);
  const std::vector<char> values = Stored(value, type);
  const std::vector<int64_t> held_begin(spans.size(), 0);
  const int64_t width = geometry.query_heads * geometry.head_size;
  const RowLayout layout{geometry.new_tokens * width, width, geometry.head_size};
  std::vector<float> output(query.size(), std::numeric_limits<float>::quiet_NaN());
  AttendCall call;
  call.kernels = &kernels;
  call.geometry = geometry;
  call.rules = rules;
  call.spans = spans.data();
  call.query = {reinterpret_cast<const char*>(query.data()),
                ElementType::kFloat32,
                layout,
                geometry.head_size,
                geometry.new_tokens,
                nullptr};
  call.rows = {{keys.data(), type, capacity, geometry.head_size},
               {values.data(), type, capacity, geometry.head_size},
               {held.empty() ? nullptr : held_keys.data(), type, capacity, geometry.head_size},
               held_begin.data()};
  if (!bias.empty()) {
    call.bias = {
        bias.data(), ElementType::kFloat32, {1, geometry.query_heads, geometry.new_tokens, bias_columns}, true};
  }
  if (!head_sink.empty()) call.head_sink = {head_sink.data(), ElementType::kFloat32, {geometry.query_heads}, true};
  call.output = {reinterpret_cast<char*>(output.data()), ElementType::kFloat32, layout, geometry.head_size};
  call.skipped = skipped;
  call.past = past.get();
  AttendBlocks(call, parallel);
  return output;
}

PrefillExpected Expect(const PrefillCase& c) {
  PrefillExpected expected;
  expected.output.assign(c.query.size(), 0.0);
  expected.tolerance.assign(c.query.size(), 0.0);
  for (int64_t b = 0; b < c.geometry.batch; ++b) {
    for (int64_t s = 0; s < c.geometry.new_tokens; ++s) {
      for (int64_t h = 0; h < c.geometry.query_heads; ++h) {
        const int64_t at = ((b * c.geometry.new_tokens + s) * c.geometry.query_heads + h) * c.geometry.head_size;
        ExpectRow(c, b, h, s, &expected.output[At(at)], &expected.tolerance[At(at)]);
      }
    }
  }
  return expected;
}

PrefillCase RandomPrefillCase(Random& random, bool with_past) {
  PrefillCase c;
  c.geometry.batch = random.Int(1, 2);
  c.geometry.new_tokens = random.Pick<int64_t>({2, 3, 5, 11, 40, 130});
  c.geometry.kv_heads = random.Int(1, 3);
  c.geometry.query_heads = c.geometry.kv_heads * random.Pick<int64_t>({1, 2, 3, 5, 7});
  c.geometry.head_size = random.Pick<int64_t>({1, 3, 7, 16, 18, 33, 64, 80, 130});
  c.type = with_past ? ElementType::kFloat32 : random.Pick({ElementType::kFloat32, ElementType::kFloat16});
  c.rules.scale = random.Pick({0.0f, 0.3f});
  c.rules.softcap = random.Pick({0.0f, 0.0f, 2.0f});
  c.rules.local_window = random.Pick<int64_t>({-1, -1, 1, 6, 150});
  c.rules.delta_window = random.Pick<int64_t>({0, 1, 3, 16, 90});
  c.rules.sinks = random.Pick<int64_t>({0, 1, 4});
  c.rules.exact_prefill = with_past || random.Int(0, 1) == 1;
  c.rules.v_skip = random.Pick({0.0f, 0.0f, 0.05f});
  int64_t longest_past = 0;
  for (int64_t b = 0; b < c.geometry.batch; ++b) {
    const int64_t past = random.Pick<int64_t>({0, 1, 30, 129, 300, 700});
    const int64_t start = random.Int(0, 2) == 0 ? random.Int(0, past + c.geometry.new_tokens - 1) : 0;
    // Right padding: the last new tokens may not be real.
    const int64_t length = past + random.Int(random.Int(0, 2) == 0 ? 1 : c.geometry.new_tokens, c.geometry.new_tokens);
    c.spans.push_back({past, std::min(start, length - 1), length});
    longest_past = std::max(longest_past, past);
  }
  c.bias_columns = longest_past + c.geometry.new_tokens + random.Int(0, 2);
  c.capacity = with_past ? c.geometry.new_tokens + 1 : c.bias_columns;
  c.query = random.Normals(c.geometry.batch * c.geometry.new_tokens * c.geometry.query_heads * c.geometry.head_size);
  if (random.Int(0, 2) == 0) {
    c.bias = random.Normals(c.geometry.query_heads * c.geometry.new_tokens * c.bias_columns);
    // A mask in the bias: some keys are forbidden.
    for (size_t i = 0; i < c.bias.size(); i += 5) c.bias[i] = -std::numeric_limits<float>::infinity();
  }
  if (random.Int(0, 2) == 0) c.head_sink = random.Normals(c.geometry.query_heads);
  if (with_past) {
    c.past = std::make_unique<FakePast>();
    FillPast(random, c);
  }
  FillRows(random, c);
  return c;
}

std::vector<PrefillCompute> ComputesOf(const Kernels& kernels) {
  std::vector<PrefillCompute> computes = {PrefillCompute::kFloat32};
  if (kernels.prefill->bfloat16 != nullptr) computes.push_back(PrefillCompute::kBfloat16);
  if (kernels.prefill->int8 != nullptr) computes.push_back(PrefillCompute::kInt8);
  return computes;
}

}  // namespace deltallm::test
