// The smaller operators, buffers updated in place, and the counts.
#include "core/delta_threshold.h"
#include "core/hybrid_window_attention.h"
#include "kernels/hold.h"
#include "tests/delta_case.h"

namespace deltallm::test {
namespace {

const Kernels& Best() { return *AvailableKernels().back(); }

/// What remains of a result with its caches in buffers of `capacity` rows.
DeltaResult Widen(const DeltaCase& c, const DeltaResult& result, int64_t capacity, char filler) {
  DeltaResult wide;
  wide.capacity = capacity;
  const int64_t row_bytes = c.head_size * ElementSize(c.cache_type);
  for (const auto& [from, to] : {std::pair{&result.key, &wide.key}, std::pair{&result.value, &wide.value}}) {
    to->type = c.cache_type;
    const int64_t heads = c.batch * c.attributes.kv_num_heads;
    to->bytes.assign(static_cast<size_t>(heads * capacity * row_bytes), filler);
    for (int64_t head = 0; head < heads; ++head) {
      std::copy_n(from->bytes.begin() + head * result.capacity * row_bytes, result.capacity * row_bytes,
                  to->bytes.begin() + head * capacity * row_bytes);
    }
  }
  return wide;
}

DELTALLM_TEST(operators, in_place_equals_copied_and_leaves_later_rows_alone) {
  Random random;
  for (int trial = 0; trial < 20; ++trial) {
    DeltaCase c = RandomDeltaCase(random, 30);
    c.bias.clear();
    const int64_t kv_heads = c.attributes.kv_num_heads;
    const int64_t new_tokens = random.Pick<int64_t>({1, 1, 5});
    const int64_t past = c.tokens - new_tokens;
    const DeltaResult before = c.Run(Best(), Serial(), 0, past, nullptr, false, 0);
    const int64_t capacity = c.tokens + 3;
    DeltaResult shared = Widen(c, before, capacity, 'x');
    const DeltaResult source = shared;

    const std::vector<float> q = Stretch(c.query, c.batch, c.tokens, past, c.tokens);
    const std::vector<float> k = Stretch(c.key, c.batch, c.tokens, past, c.tokens);
    const std::vector<float> v = Stretch(c.value, c.batch, c.tokens, past, c.tokens);
    const std::vector<int32_t> seqlens(static_cast<size_t>(c.batch), static_cast<int32_t>(c.tokens - 1));
    const std::vector<int32_t> total{static_cast<int32_t>(c.tokens)};
    DeltaAttentionInputs in;
    in.query = FloatTensor(q, {c.batch, new_tokens, c.attributes.num_heads * c.head_size});
    in.key = FloatTensor(k, {c.batch, new_tokens, kv_heads * c.head_size});
    in.value = FloatTensor(v, {c.batch, new_tokens, kv_heads * c.head_size});
    in.seqlens_k = TensorOf(seqlens, {c.batch}, ElementType::kInt32);
    in.total_sequence_length = TensorOf(total, {}, ElementType::kInt32);
    in.threshold =
        FloatTensor(c.threshold, static_cast<int64_t>(c.threshold.size()) == kv_heads ? Shape{kv_heads}
                                                                                      : Shape{kv_heads, c.head_size});
    if (c.rotary_half > 0) {
      in.cos_cache = FloatTensor(c.cos, {c.tokens, c.rotary_half});
      in.sin_cache = FloatTensor(c.sin, {c.tokens, c.rotary_half});
    }
    std::vector<std::vector<float>> outputs;
    std::vector<DeltaResult> results;
    for (const bool in_place : {true, false}) {
      DeltaResult target = in_place ? shared : Widen(c, before, capacity, 'y');
      const DeltaResult& past_cache = in_place ? target : source;
      const Shape shape{c.batch, kv_heads, capacity, c.head_size};
      in.past_key = {past_cache.key.bytes.data(), c.cache_type, shape, true};
      in.past_value = {past_cache.value.bytes.data(), c.cache_type, shape, true};
      const DeltaPlan plan = MakeDeltaPlan(c.attributes, in);
      std::vector<float> output(q.size());
      DeltaAttentionOutputs out;
      out.output = {output.data(), ElementType::kFloat32};
      out.present_key = target.key.bytes.data();
      out.present_value = target.value.bytes.data();
      RunDeltaAttention(c.attributes, in, plan, out, Best(), Serial());
      outputs.push_back(output);
      results.push_back(std::move(target));
    }
    EXPECT(std::memcmp(outputs[0].data(), outputs[1].data(), outputs[0].size() * 4) == 0, trial);
    const int64_t row_bytes = c.head_size * ElementSize(c.cache_type);
    for (int64_t head = 0; head < c.batch * kv_heads; ++head) {
      const int64_t at = head * capacity * row_bytes;
      EXPECT(std::equal(results[0].key.bytes.begin() + at, results[0].key.bytes.begin() + at + c.tokens * row_bytes,
                        results[1].key.bytes.begin() + at),
             trial);
      for (int64_t i = c.tokens * row_bytes; i < capacity * row_bytes; ++i) {
        EXPECT(results[0].key.bytes[static_cast<size_t>(at + i)] == 'x', "a row behind the length was written");
      }
    }
  }
}

DELTALLM_TEST(operators, delta_threshold_repeats_the_hold_transform) {
  Random random;
  for (const ElementType type : {ElementType::kFloat32, ElementType::kFloat16}) {
    for (const bool row : {false, true}) {
      const int64_t batch = 2, heads = 3, rows = 19, size = 10;
      const auto make = [&](int64_t count) {
        CacheBytes bytes{type, {}};
        bytes.Resize(count);
        for (int64_t i = 0; i < count; ++i) {
          const float value = random.Normal();
          if (type == ElementType::kFloat16) {
            reinterpret_cast<uint16_t*>(bytes.bytes.data())[i] = FloatToHalf(value);
          } else {
            reinterpret_cast<float*>(bytes.bytes.data())[i] = value;
          }
        }
        return bytes;
      };
      const CacheBytes key = make(batch * heads * rows * size);
      const CacheBytes reference = make(batch * heads * size);
      const std::vector<float> threshold{0.7f, 1.1f, 0.0f};
      std::vector<uint8_t> transmit(static_cast<size_t>(batch * rows));
      for (uint8_t& flag : transmit) flag = random.Int(0, 4) == 0 ? 1 : 0;
      HoldRules rules;
      rules.row_granularity = row;
      DeltaThresholdInputs in;
      in.key = {key.bytes.data(), type, {batch, heads, rows, size}, true};
      in.reference = {reference.bytes.data(), type, {batch, heads, size}, true};
      in.threshold = FloatTensor(threshold, {heads});
      in.transmit = TensorOf(transmit, {batch, rows}, ElementType::kBool);
      CheckDeltaThreshold(rules, in);
      CacheBytes held{type, std::vector<char>(key.bytes.size())};
      CacheBytes delta = held;
      RunDeltaThreshold(rules, in, held.bytes.data(), delta.bytes.data(), Best(), ThreadPerTask());

      for (int64_t head = 0; head < batch * heads; ++head) {
        std::vector<float> previous;
        for (int64_t c = 0; c < size; ++c) previous.push_back(reference.At(head * size + c));
        for (int64_t t = 0; t < rows; ++t) {
          std::vector<float> now;
          for (int64_t c = 0; c < size; ++c) now.push_back(key.At((head * rows + t) * size + c));
          const float theta = threshold[static_cast<size_t>(head % heads)];
          const bool forced = transmit[static_cast<size_t>(head / heads * rows + t)] != 0;
          std::vector<float> expected = now;
          if (!forced && row) {
            if (HoldsRow(now.data(), previous.data(), size, theta, nullptr, RowRule::kRelative)) expected = previous;
          } else if (!forced) {
            HoldElements(now.data(), previous.data(), size, &theta, 0, expected.data());
          }
          for (int64_t c = 0; c < size; ++c) {
            const auto at = static_cast<size_t>(c);
            const float difference = expected[at] - previous[at];
            const float stored = type == ElementType::kFloat16 ? HalfToFloat(FloatToHalf(difference)) : difference;
            EXPECT(held.At((head * rows + t) * size + c) == expected[at], head, " ", t, " ", c);
            EXPECT(delta.At((head * rows + t) * size + c) == stored, head, " ", t, " ", c);
          }
          previous = expected;
        }
      }
    }
  }
}

DELTALLM_TEST(operators, hybrid_window_attention_repeats_delta_attention) {
  Random random;
  for (int trial = 0; trial < 20; ++trial) {
    DeltaCase c = RandomDeltaCase(random, random.Pick<int64_t>({1, 8, 33, 140}));
    c.rotary_half = 0;
    c.attributes.do_rotary = false;
    c.cache_type = ElementType::kFloat32;
    const Expected expected = ExpectOneShot(c);
    const int64_t heads = c.attributes.num_heads;
    const int64_t kv_heads = c.attributes.kv_num_heads;
    // The exact keys are those of a case whose window covers everything, the held ones of a case without a window.
    DeltaCase exact = c;
    exact.attributes.attention.delta_window = c.tokens;
    DeltaCase coded = c;
    coded.attributes.attention.delta_window = 0;
    const Expected exact_cache = ExpectOneShot(exact);
    const Expected coded_cache = ExpectOneShot(coded);
    std::vector<float> query(c.query.size());
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t s = 0; s < c.tokens; ++s) {
        for (int64_t h = 0; h < heads; ++h) {
          std::copy_n(c.query.begin() + ((b * c.tokens + s) * heads + h) * c.head_size, c.head_size,
                      query.begin() + ((b * heads + h) * c.tokens + s) * c.head_size);
        }
      }
    }
    const std::vector<int64_t> past(static_cast<size_t>(c.batch), 0);
    const Shape cache_shape{c.batch, kv_heads, c.tokens, c.head_size};
    HybridWindowInputs in;
    in.query = FloatTensor(query, {c.batch, heads, c.tokens, c.head_size});
    in.key = FloatTensor(exact_cache.key, cache_shape);
    in.held_key = FloatTensor(coded_cache.key, cache_shape);
    in.value = FloatTensor(exact_cache.value, cache_shape);
    in.past_length = TensorOf(past, {c.batch}, ElementType::kInt64);
    in.start = TensorOf(c.start, {c.batch}, ElementType::kInt64);
    in.length = TensorOf(c.length, {c.batch}, ElementType::kInt64);
    if (!c.bias.empty()) in.attention_bias = FloatTensor(c.bias, {1, heads, c.tokens, c.tokens});
    if (!c.head_sink.empty()) in.head_sink = FloatTensor(c.head_sink, {heads});
    const HybridWindowPlan plan = MakeHybridWindowPlan(in);
    std::vector<float> output(query.size());
    RunHybridWindowAttention(c.attributes.attention, in, plan, output.data(), Best(), ThreadPerTask());
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t s = 0; s < c.tokens; ++s) {
          for (int64_t i = 0; i < c.head_size; ++i) {
            const float found = output[static_cast<size_t>(((b * heads + h) * c.tokens + s) * c.head_size + i)];
            const double wanted =
                expected.output[static_cast<size_t>(((b * c.tokens + s) * heads + h) * c.head_size + i)];
            EXPECT(std::fabs(found - wanted) <= 2e-5 * (1 + std::fabs(wanted)), trial, " ", found, " for ", wanted);
          }
        }
      }
    }
  }
}

DELTALLM_TEST(operators, counts_of_a_call_worked_out_by_hand) {
  // One KV head, two query heads, D 2, five tokens, no sinks, window 1, θ 0.5: rows 0 to 3 are coded.
  DeltaCase c;
  c.head_size = 2;
  c.tokens = 5;
  c.attributes.num_heads = 2;
  c.attributes.kv_num_heads = 1;
  c.attributes.attention.delta_window = 1;
  c.start = {0};
  c.length = {5};
  c.threshold = {0.5f};
  c.query.assign(5 * 2 * 2, 1.0f);
  c.value.assign(5 * 2, 1.0f);
  // k̂: (0,0) (0,1) (0,1) (2,1), then the exact (2,9). Zeros of Δ in rows 1 to 3: 1, 2, 1.
  c.key = {0.0f, 0.0f, 0.4f, 1.0f, 0.5f, 1.2f, 2.0f, 1.1f, 2.0f, 9.0f};
  const DeltaResult element = c.Run(Best(), Serial(), 0, 5, nullptr, false, 0);
  // Visible pairs 1+2+3+4+5 = 15. Read as k̂: row 0 by 4 queries, row 1 by 3, row 2 by 2, row 3 by 1.
  const std::vector<int64_t> expected_element{8,          4, 2 * 2 * 15, 2 * (3 * 1 + 2 * 2 + 1 * 1),
                                              2 * 2 * 15, 0, 5 * 16,     5 * 16};
  EXPECT(element.statistics == expected_element, "element");
  c.attributes.hold.row_granularity = true;
  c.attributes.hold.row_rule = RowRule::kAbsolute;
  // As rows: (0,0) | (0.4,1) | held: the change is (0.1,0.2) | (2,1.1).
  const DeltaResult row = c.Run(Best(), Serial(), 0, 5, nullptr, false, 0);
  const std::vector<int64_t> expected_row{4, 1, 60, 2 * 2 * 2, 60, 2 * 2 * 2, 80, 80};
  EXPECT(row.statistics == expected_row, "row");
}

DELTALLM_TEST(operators, a_padded_row_is_no_row_before) {
  // The first real key repeats the padded one: it still counts as transmitted, and is not coded against it.
  DeltaCase c;
  c.head_size = 2;
  c.tokens = 3;
  c.attributes.num_heads = 1;
  c.attributes.kv_num_heads = 1;
  c.start = {1};
  c.length = {3};
  c.threshold = {100.0f};
  c.query.assign(3 * 2, 1.0f);
  c.value.assign(3 * 2, 1.0f);
  c.key = {7.0f, 8.0f, 7.0f, 8.0f, 1.0f, 2.0f};
  const DeltaResult result = c.Run(Best(), Serial(), 0, 3, nullptr, false, 0);
  EXPECT(result.key.At(2 * 2) == 7.0f && result.key.At(2 * 2 + 1) == 8.0f, "the last row is held");
  const std::vector<int64_t> expected{4, 2, 2 * 3, 2 * 1, 2 * 3, 0, 2 * 16, 2 * 16};
  EXPECT(result.statistics == expected, "counts");
}

}  // namespace
}  // namespace deltallm::test
