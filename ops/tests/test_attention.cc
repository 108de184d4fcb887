// DeltaAttention below ONNX Runtime: against the specification in double loops, and against itself in other chunks.
#include "tests/delta_case.h"

namespace deltallm::test {
namespace {

std::string Describe(const DeltaCase& c) {
  const AttentionRules& rules = c.attributes.attention;
  return Text("B ", c.batch, " N ", c.tokens, " Hq ", c.attributes.num_heads, " Hkv ", c.attributes.kv_num_heads, " D ",
              c.head_size, " window ", rules.delta_window, " sinks ", rules.sinks, " local ", rules.local_window,
              " row ", c.attributes.hold.row_granularity, " cache ", TypeName(c.cache_type), " bias ", !c.bias.empty(),
              " ");
}

/// Outputs are sums of at most a few hundred float32 products of standard normal numbers.
constexpr double kTolerance = 2e-5;

void ExpectClose(const std::vector<float>& found, const std::vector<double>& expected, const std::string& what) {
  EXPECT(found.size() == expected.size(), what, found.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (!(std::fabs(found[i] - expected[i]) <= kTolerance * (1 + std::fabs(expected[i])))) {
      EXPECT(false, what, " at ", i, ": ", found[i], " for ", expected[i]);
      return;
    }
  }
}

void ExpectCache(const DeltaCase& c, const CacheBytes& found, int64_t capacity, const std::vector<float>& expected,
                 const std::string& what) {
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t kv = 0; kv < c.attributes.kv_num_heads; ++kv) {
      const int64_t head = b * c.attributes.kv_num_heads + kv;
      const auto row = static_cast<size_t>(b);
      for (int64_t i = c.start[row] * c.head_size; i < c.length[row] * c.head_size; ++i) {
        const float value = found.At(head * capacity * c.head_size + i);
        if (value != expected[static_cast<size_t>(head * c.tokens * c.head_size + i)]) {
          EXPECT(false, what, " head ", head, " element ", i, ": ", value);
          return;
        }
      }
    }
  }
}

DELTALLM_TEST(attention, one_shot_follows_the_specification) {
  Random random;
  for (int trial = 0; trial < Trials(60); ++trial) {
    const DeltaCase c = RandomDeltaCase(random, random.Pick<int64_t>({1, 2, 5, 13, 29, 140, 270}));
    const Expected expected = ExpectOneShot(c);
    for (const Kernels* kernels : AvailableKernels()) {
      const std::string what = Text(kernels->isa, " trial ", trial, ": ", Describe(c));
      const DeltaResult result = c.Run(*kernels, Serial(), 0, c.tokens, nullptr, false, 0);
      ExpectClose(result.output, expected.output, what);
      ExpectCache(c, result.key, result.capacity, expected.key, what + "key");
      ExpectCache(c, result.value, result.capacity, expected.value, what + "value");
    }
  }
}

DELTALLM_TEST(attention, chunks_and_single_tokens_give_the_one_shot_result) {
  Random random;
  for (int trial = 0; trial < Trials(40); ++trial) {
    const DeltaCase c = RandomDeltaCase(random, random.Pick<int64_t>({9, 31, 150}));
    const Expected expected = ExpectOneShot(c);
    const Kernels& kernels = *AvailableKernels()[static_cast<size_t>(trial) % AvailableKernels().size()];
    DeltaResult past;
    std::vector<float> output(expected.output.size());
    for (int64_t first = 0; first < c.tokens;) {
      const int64_t last = std::min(c.tokens, first + random.Pick<int64_t>({1, 1, 2, 7, 60}));
      DeltaResult next = c.Run(kernels, Serial(), first, last, first == 0 ? nullptr : &past, false, 0);
      const int64_t width = c.attributes.num_heads * c.head_size;
      for (int64_t b = 0; b < c.batch; ++b) {
        std::copy_n(next.output.begin() + b * (last - first) * width, (last - first) * width,
                    output.begin() + (b * c.tokens + first) * width);
      }
      past = std::move(next);
      first = last;
    }
    const std::string what = Text(kernels.isa, " trial ", trial, ": ", Describe(c));
    ExpectClose(output, expected.output, what);
    ExpectCache(c, past.key, past.capacity, expected.key, what + "key");
    ExpectCache(c, past.value, past.capacity, expected.value, what + "value");
  }
}

DELTALLM_TEST(attention, exact_prefill_reads_rows_as_they_were_and_leaves_the_same_cache) {
  Random random;
  for (int trial = 0; trial < Trials(20); ++trial) {
    DeltaCase c = RandomDeltaCase(random, 40);
    const Kernels& kernels = *AvailableKernels().back();
    const DeltaResult delta = c.Run(kernels, Serial(), 0, c.tokens, nullptr, false, 0);
    c.attributes.attention.exact_prefill = true;
    const DeltaResult exact = c.Run(kernels, Serial(), 0, c.tokens, nullptr, false, 0);
    EXPECT(exact.key.bytes == delta.key.bytes, Describe(c));
    // With nothing coded before the call, it is dense attention.
    c.attributes.attention.delta_window = c.tokens;
    ExpectClose(exact.output, ExpectOneShot(c).output, Describe(c));
  }
}

/// One sequence with one KV head, too long for one block of keys or one thread.
DeltaCase LongCase(Random& random, int64_t tokens) {
  DeltaCase c;
  c.tokens = tokens;
  c.head_size = random.Pick<int64_t>({8, 17});
  c.attributes.kv_num_heads = 1;
  c.attributes.num_heads = random.Pick<int64_t>({1, 3, 4});
  c.attributes.attention.delta_window = 20;
  c.start = {random.Pick<int64_t>({0, 17})};
  c.length = {c.tokens};
  c.threshold = {0.7f};
  c.query = random.Normals(c.tokens * c.attributes.num_heads * c.head_size);
  c.key = random.Normals(c.tokens * c.head_size);
  c.value = random.Normals(c.tokens * c.head_size);
  c.head_sink = random.Normals(c.attributes.num_heads);
  return c;
}

void CheckLastToken(const DeltaCase& c, const Parallel& parallel) {
  const int64_t past = c.tokens - 1;
  const Expected expected = ExpectLast(c);
  const DeltaResult before = c.Run(*AvailableKernels().back(), Serial(), 0, past, nullptr, false, 0);
  for (const Kernels* kernels : AvailableKernels()) {
    DeltaResult copy = before;
    const DeltaResult step = c.Run(*kernels, parallel, past, c.tokens, &copy, false, 0);
    ExpectClose(step.output, expected.output, Text(kernels->isa, " ", Describe(c)));
  }
}

DELTALLM_TEST(attention, a_long_decode_step_split_over_keys_follows_the_specification) {
  Random random;
  for (int trial = 0; trial < Trials(6); ++trial) CheckLastToken(LongCase(random, 1700), ThreadPerTask());
}

DELTALLM_TEST(attention, a_decode_step_over_several_blocks_of_keys_follows_the_specification) {
  Random random;
  for (const int64_t tokens : {2049, 4500}) {
    if (tokens > 4000 && Trials(2) < 2) continue;  // quadratic time
    DeltaCase c = LongCase(random, tokens);
    // The maximum grows from block to block: sums already made are scaled down.
    for (int64_t t = 0; t < tokens; ++t) {
      const float growth = 1.0f + static_cast<float>(t) / static_cast<float>(tokens);
      for (int64_t i = 0; i < c.head_size; ++i) c.key[static_cast<size_t>(t * c.head_size + i)] *= growth;
    }
    CheckLastToken(c, Parallel{});
  }
}

DELTALLM_TEST(attention, threads_do_not_change_a_bit) {
  Random random;
  for (int trial = 0; trial < Trials(10); ++trial) {
    const DeltaCase c = RandomDeltaCase(random, 600);
    const Kernels& kernels = *AvailableKernels().back();
    DeltaResult serial = c.Run(kernels, Serial(), 0, 599, nullptr, false, 0);
    DeltaResult threaded = c.Run(kernels, ThreadPerTask(), 0, 599, nullptr, false, 0);
    EXPECT(std::memcmp(serial.output.data(), threaded.output.data(), serial.output.size() * 4) == 0, Describe(c));
    EXPECT(serial.key.bytes == threaded.key.bytes, Describe(c));
    EXPECT(serial.statistics == threaded.statistics, Describe(c));
    const DeltaResult serial_step = c.Run(kernels, Serial(), 599, 600, &serial, false, 0);
    const DeltaResult threaded_step = c.Run(kernels, ThreadPerTask(), 599, 600, &threaded, false, 0);
    EXPECT(std::memcmp(serial_step.output.data(), threaded_step.output.data(), serial_step.output.size() * 4) == 0,
           Describe(c));
  }
}

}  // namespace
}  // namespace deltallm::test
