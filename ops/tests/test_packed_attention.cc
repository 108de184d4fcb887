// Attention over packed caches: against a softmax in double over the decoded rows of tests/packed_model.cc.
#include <numeric>

#include "tests/packed_case.h"

namespace deltallm::test {
namespace {

size_t At(int64_t index) { return static_cast<size_t>(index); }

struct Reference {
  std::vector<double> output;
  double tolerance = 0.0;
};

/// One query over the entries it sees. The tolerance is what rounding queries and weights to integers may do.
Reference AttendEntries(const DeltaCase& c, int64_t b, int64_t h, int64_t row, const std::vector<ModelEntry>& entries) {
  const AttentionRules& rules = c.attributes.attention;
  const int64_t start = c.start[At(b)];
  Reference result;
  result.output.assign(At(c.head_size), 0.0);
  if (row < start) return result;
  const double scale = rules.scale != 0.0f ? rules.scale : 1.0 / std::sqrt(static_cast<double>(c.head_size));
  const std::vector<float> query = RotatedQuery(c, b, h, row);
  double query_norm = 0.0, largest_key = 0.0, largest_value = 0.0;
  for (const float q : query) query_norm += double{q} * q;
  std::vector<double> scores;
  std::vector<const ModelEntry*> seen;
  for (const ModelEntry& entry : entries) {
    if (rules.local_window > 0 && entry.token >= 0 && entry.token + start <= row - rules.local_window) continue;
    double score = 0.0, norm = 0.0;
    for (size_t i = 0; i < query.size(); ++i) {
      score += double{query[i]} * entry.key[i];
      norm += double{entry.key[i]} * entry.key[i];
      largest_value = std::max(largest_value, std::fabs(double{entry.value[i]}));
    }
    largest_key = std::max(largest_key, std::sqrt(norm));
    score *= scale;
    if (rules.softcap > 0.0f) score = rules.softcap * std::tanh(score / rules.softcap);
    if (!c.bias.empty()) score += c.bias[At((h * c.tokens + row) * c.tokens + start + entry.token)];
    scores.push_back(score);
    seen.push_back(&entry);
  }
  if (seen.empty()) return result;
  double top = *std::max_element(scores.begin(), scores.end());
  if (!c.head_sink.empty()) top = std::max(top, double{c.head_sink[At(h)]});
  double denominator = c.head_sink.empty() ? 0.0 : std::exp(c.head_sink[At(h)] - top);
  for (size_t n = 0; n < seen.size(); ++n) denominator += seen[n]->tokens * std::exp(scores[n] - top);
  for (size_t n = 0; n < seen.size(); ++n) {
    const double p = seen[n]->tokens * std::exp(scores[n] - top) / denominator;
    for (size_t i = 0; i < query.size(); ++i) result.output[i] += p * seen[n]->value[i];
  }
  // Of int8: 15 bits of the query, 14 of the weights. Of int4: 7 of query·scale, where code·scale reaches twice the
  // largest key, and 8 of the weights. Errors of channels and rows are independent; five deviations of their sum.
  const bool int4 = c.attributes.cache_format == CacheFormat::kInt4;
  const double score_error = std::sqrt(query_norm) * scale * largest_key * (int4 ? 2.0 / 127 : 1.0 / 16256);
  const double value_error = std::sqrt(static_cast<double>(seen.size())) * (int4 ? 2.0 / 255 : 1.0 / 16383) / 2;
  result.tolerance = largest_value * (2 * score_error + value_error) + 2e-5;
  return result;
}

void ExpectClose(const DeltaCase& c, const DeltaResult& result, int64_t first, int64_t last, int64_t b, int64_t h,
                 int64_t row, const Reference& expected, const std::string& what) {
  const int64_t at = (((b * (last - first)) + row - first) * c.attributes.num_heads + h) * c.head_size;
  for (int64_t i = 0; i < c.head_size; ++i) {
    const double found = result.output[At(at + i)];
    if (!(std::fabs(found - expected.output[At(i)]) <= expected.tolerance)) {
      EXPECT(false, what, " b ", b, " h ", h, " row ", row, " channel ", i, ": ", found, " for ",
             expected.output[At(i)], " within ", expected.tolerance);
      return;
    }
  }
}

DELTALLM_TEST(packed_attention, each_token_reads_the_cache_it_is_appended_to) {
  Random random;
  for (int trial = 0; trial < Trials(36); ++trial) {
    const CacheFormat format = trial % 2 == 0 ? CacheFormat::kInt8 : CacheFormat::kInt4;
    const DeltaCase c = RandomPackedCase(random, format, random.Pick<int64_t>({5, 40, 170, 330}));
    const Kernels& kernels = *AvailableKernels()[static_cast<size_t>(trial) % AvailableKernels().size()];
    const bool in_place = random.Int(0, 1) == 1;
    PackedModels models(c);
    DeltaResult past = NoisyBuffer(random, c);
    bool has_past = in_place;
    for (int64_t first = 0; first < c.tokens;) {
      const int64_t last = std::min(c.tokens, first + random.Pick<int64_t>({1, 2, 9, 90}));
      DeltaResult next = c.Run(kernels, random.Int(0, 1) == 1 ? ThreadPerTask() : Serial(), first, last,
                               has_past ? &past : nullptr, in_place, past.capacity);
      past = std::move(next);
      has_past = true;
      for (int64_t row = first; row < last; ++row) {
        models.Append(row, row + 1);
        // Judging every query would take longer than answering it.
        if (row % 7 != 0 && row + 1 != last) continue;
        for (int64_t head = 0; head < c.batch * c.attributes.kv_num_heads; ++head) {
          const std::vector<ModelEntry> entries = models[At(head)].Entries();
          const int64_t b = head / c.attributes.kv_num_heads;
          for (int64_t g = 0; g < c.group(); ++g) {
            const int64_t h = head % c.attributes.kv_num_heads * c.group() + g;
            ExpectClose(c, past, first, last, b, h, row, AttendEntries(c, b, h, row, entries),
                        Text(kernels.isa, " trial ", trial, " ", DescribePacked(c)));
          }
        }
      }
      first = last;
    }
  }
}

DELTALLM_TEST(packed_attention, exact_prefill_reads_the_past_and_the_new_rows_as_they_came) {
  Random random;
  for (int trial = 0; trial < Trials(24); ++trial) {
    const CacheFormat format = trial % 2 == 0 ? CacheFormat::kInt8 : CacheFormat::kInt4;
    DeltaCase c = RandomPackedCase(random, format, 300);
    c.attributes.attention.exact_prefill = true;
    const Kernels& kernels = *AvailableKernels()[static_cast<size_t>(trial) % AvailableKernels().size()];
    const int64_t first = random.Pick<int64_t>({0, 3, 60, 290});
    PackedModels models(c);
    DeltaResult past = NoisyBuffer(random, c);
    if (first > 0) past = c.Run(kernels, Serial(), 0, first, nullptr, false, 0);
    models.Append(0, first);
    const DeltaResult result = c.Run(kernels, ThreadPerTask(), first, c.tokens, first > 0 ? &past : nullptr, false, 0);
    for (int64_t head = 0; head < c.batch * c.attributes.kv_num_heads; ++head) {
      const int64_t b = head / c.attributes.kv_num_heads;
      const int64_t kv = head % c.attributes.kv_num_heads;
      std::vector<ModelEntry> entries = models[At(head)].Entries();
      for (int64_t row = first; row < c.tokens; ++row) {
        const int64_t token = row - c.start[At(b)];
        if (token >= 0) entries.push_back({IncomingKey(c, b, kv, row), IncomingValue(c, b, kv, row), 1, token, false});
        if (row % 9 != 0 && row + 1 != c.tokens) continue;
        for (int64_t g = 0; g < c.group(); ++g) {
          const int64_t h = kv * c.group() + g;
          Reference expected = AttendEntries(c, b, h, row, entries);
          expected.tolerance = 3e-5 * (1 + expected.tolerance);
          ExpectClose(c, result, first, c.tokens, b, h, row, expected,
                      Text(kernels.isa, " trial ", trial, " from ", first, " ", DescribePacked(c)));
        }
      }
    }
  }
}

DELTALLM_TEST(packed_attention, threads_and_chunks_do_not_change_a_bit_of_the_cache_or_of_a_step) {
  Random random;
  // The exact prefill takes quadratic time, an emulator's too.
  const int64_t last = Trials(2) == 2 ? 2399 : 1199;
  for (int trial = 0; trial < Trials(10); ++trial) {
    DeltaCase c = RandomPackedCase(random, trial % 2 == 0 ? CacheFormat::kInt8 : CacheFormat::kInt4, last + 1);
    c.bias.clear();
    c.attributes.attention.exact_prefill = true;
    const Kernels& kernels = *AvailableKernels().back();
    DeltaResult serial = c.Run(kernels, Serial(), 0, last, nullptr, false, 0);
    DeltaResult threaded = c.Run(kernels, ThreadPerTask(), 0, last, nullptr, false, 0);
    EXPECT(serial.key.bytes == threaded.key.bytes && serial.value.bytes == threaded.value.bytes, DescribePacked(c));
    EXPECT(serial.statistics == threaded.statistics, DescribePacked(c));
    const DeltaResult serial_step = c.Run(kernels, Serial(), last, last + 1, &serial, false, 0);
    const DeltaResult threaded_step = c.Run(kernels, ThreadPerTask(), last, last + 1, &threaded, false, 0);
    EXPECT(std::memcmp(serial_step.output.data(), threaded_step.output.data(), serial_step.output.size() * 4) == 0,
           DescribePacked(c));
    EXPECT(serial_step.key.bytes == threaded_step.key.bytes, DescribePacked(c));
  }
}

DELTALLM_TEST(packed_attention, leaving_out_small_values_costs_no_more_than_it_may_and_is_counted) {
  Random random;
  for (int trial = 0; trial < Trials(12); ++trial) {
    DeltaCase c = RandomPackedCase(random, trial % 2 == 0 ? CacheFormat::kInt8 : CacheFormat::kInt4, 700);
    c.bias.clear();
    for (float& q : c.query) q *= 8.0f;
    c.attributes.attention.exact_prefill = true;
    const Kernels& kernels = *AvailableKernels().back();
    DeltaResult past = c.Run(kernels, Serial(), 0, 699, nullptr, false, 0);
    DeltaResult copy = past;
    const DeltaResult all = c.Run(kernels, Serial(), 699, 700, &copy, false, 0);
    const float epsilon = c.attributes.attention.v_skip = 1e-3f;
    const DeltaResult skipped = c.Run(kernels, Serial(), 699, 700, &past, false, 0);
    const float largest = std::fabs(*std::max_element(c.value.begin(), c.value.end(),
                                                      [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
    double difference = 0.0;
    for (size_t i = 0; i < all.output.size(); ++i) {
      difference = std::max(difference, std::fabs(double{all.output[i]} - skipped.output[i]));
    }
    EXPECT(difference <= 700 * epsilon * largest, DescribePacked(c), difference);
    int64_t left_out = 0, dense = 0;
    for (int64_t kv = 0; kv < c.attributes.kv_num_heads; ++kv) {
      left_out += skipped.statistics[At(kv * 8 + 5)] - all.statistics[At(kv * 8 + 5)];
      dense += skipped.statistics[At(kv * 8 + 4)];
      EXPECT(skipped.statistics[At(kv * 8 + 5)] <= skipped.statistics[At(kv * 8 + 4)], DescribePacked(c));
    }
    EXPECT(left_out >= 0 && left_out % c.head_size == 0, DescribePacked(c), left_out);
    EXPECT((difference > 0.0) <= (left_out > 0), DescribePacked(c), "skipped, but not counted");
    if (c.attributes.attention.local_window < 0 && c.head_size >= 12 && c.group() == 1) {
      EXPECT(left_out > 0, DescribePacked(c), "nothing left out of ", dense);
    }
  }
}

}  // namespace
}  // namespace deltallm::test
