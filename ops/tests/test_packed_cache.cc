// The bytes of the packed caches: against docs/cache-format.md written out in tests/packed_model.cc.
#include "cache/packed_rows.h"
#include "core/packed_writer.h"
#include "tests/packed_case.h"

namespace deltallm::test {
namespace {

constexpr CacheFormat kFormats[] = {CacheFormat::kInt8, CacheFormat::kInt4};

DELTALLM_TEST(packed_cache, any_way_to_feed_the_tokens_leaves_the_bytes_of_the_format) {
  Random random;
  int64_t held = 0, coded = 0;
  for (int trial = 0; trial < Trials(60); ++trial) {
    const CacheFormat format = kFormats[trial % 2];
    DeltaCase c = RandomPackedCase(random, format, random.Pick<int64_t>({3, 29, 140, 330, 420}));
    c.attributes.attention.exact_prefill = random.Int(0, 1) == 1;
    const Kernels& kernels = *AvailableKernels()[static_cast<size_t>(trial) % AvailableKernels().size()];
    const bool in_place = random.Int(0, 1) == 1;
    DeltaResult past = NoisyBuffer(random, c);
    bool has_past = in_place;
    PackedModels models(c);
    for (int64_t first = 0; first < c.tokens;) {
      const int64_t last = std::min(c.tokens, first + random.Pick<int64_t>({1, 1, 2, 7, 60, 300}));
      DeltaResult next = c.Run(kernels, random.Int(0, 1) == 1 ? ThreadPerTask() : Serial(), first, last,
                               has_past ? &past : nullptr, in_place, past.capacity);
      past = std::move(next);
      has_past = true;
      models.Append(first, last);
      const std::string found = models.Compare(past);
      EXPECT(found.empty(), kernels.isa, " trial ", trial, " at ", last, ": ", DescribePacked(c), found);
      if (!found.empty()) return;
      first = last;
    }
    held += models[0].held();
    coded += models[0].coded();
  }
  EXPECT(held > coded / 10, "a test in which nothing is held: ", held, " of ", coded);
}

DELTALLM_TEST(packed_cache, a_copied_cache_holds_nothing_but_its_rows) {
  Random random;
  for (int trial = 0; trial < Trials(12); ++trial) {
    DeltaCase c = RandomPackedCase(random, kFormats[trial % 2], 230);
    const Kernels& kernels = *AvailableKernels().back();
    DeltaResult noisy = NoisyBuffer(random, c);
    DeltaResult in_place = c.Run(kernels, Serial(), 0, 229, &noisy, true, noisy.capacity);
    DeltaResult copied = c.Run(kernels, Serial(), 0, 229, nullptr, false, 0);
    // One more token, each past put into a new buffer: noise must not have travelled.
    const DeltaResult from_noise = c.Run(kernels, Serial(), 229, 230, &in_place, false, 0);
    DeltaResult clean = c.Run(kernels, Serial(), 229, 230, &copied, false, 0);
    EXPECT(std::memcmp(from_noise.output.data(), clean.output.data(), clean.output.size() * 4) == 0, DescribePacked(c));
    if (from_noise.capacity == clean.capacity) {
      EXPECT(from_noise.key.bytes == clean.key.bytes, DescribePacked(c));
      EXPECT(from_noise.value.bytes == clean.value.bytes, DescribePacked(c));
    }
  }
}

DELTALLM_TEST(packed_cache, a_rewind_that_is_accepted_leaves_the_cache_of_the_tokens_that_stay) {
  Random random;
  int refused = 0, done = 0;
  const int trials = Trials(60);
  for (int trial = 0; trial < trials; ++trial) {
    DeltaCase c = RandomPackedCase(random, kFormats[trial % 2], 260);
    c.attributes.attention.exact_prefill = random.Int(0, 1) == 1;
    // Rows that a rewind leaves without a token are told by comparing at the end; the start must not move.
    for (int64_t& start : c.start) start = std::min<int64_t>(start, 20);
    const Kernels& kernels = *AvailableKernels().back();
    const int64_t reached = random.Int(40, 220);
    const int64_t kept = reached - random.Pick<int64_t>({1, 4, 9, 30});
    const bool in_place = random.Int(0, 1) == 1;
    DeltaResult past = NoisyBuffer(random, c);
    past = c.Run(kernels, Serial(), 0, reached, in_place ? &past : nullptr, in_place, past.capacity);
    const std::string sentence = RefusalOf([&] {
      DeltaResult copy = past;
      past = c.Run(kernels, Serial(), kept, kept + 1, &copy, in_place, past.capacity);
    });
    const bool sealed_or_merged = sentence.find("cannot be taken back") != std::string::npos;
    EXPECT(sentence.empty() || sealed_or_merged, sentence);
    // The window may be left by anyone; behind it, only rows of their own can be dropped.
    const int64_t depth = reached - kept;
    EXPECT(sentence.empty() || depth > c.attributes.attention.delta_window, DescribePacked(c), sentence);
    EXPECT(sentence.empty() || RunsMerge(c) || c.attributes.cache_format == CacheFormat::kInt4, DescribePacked(c));
    if (!sentence.empty()) {
      ++refused;
      continue;
    }
    ++done;
    past = c.Run(kernels, Serial(), kept + 1, c.tokens, &past, in_place, past.capacity);
    PackedModels models(c);
    models.Append(0, c.tokens);
    const std::string found = models.Compare(past);
    EXPECT(found.empty(), "trial ", trial, " ", reached, " to ", kept, ": ", DescribePacked(c), found);
  }
  EXPECT((refused > 3 || trials < 60) && done > trials / 3, "one-sided test: ", refused, " refused, ", done, " done");
}

DELTALLM_TEST(packed_cache, counts_follow_the_format) {
  Random random;
  for (int trial = 0; trial < Trials(20); ++trial) {
    DeltaCase c = RandomPackedCase(random, kFormats[trial % 2], 250);
    c.attributes.attention.local_window = -1;
    const Kernels& kernels = *AvailableKernels().back();
    const int64_t kv_heads = c.attributes.kv_num_heads;
    PackedModels models(c);
    models.Append(0, 249);
    std::vector<int64_t> coded, held;
    const auto heads = static_cast<size_t>(c.batch * kv_heads);
    for (size_t head = 0; head < heads; ++head) {
      coded.push_back(models[head].coded());
      held.push_back(models[head].held());
    }
    DeltaResult past = c.Run(kernels, Serial(), 0, 249, nullptr, false, 0);
    const DeltaResult step = c.Run(kernels, Serial(), 249, 250, &past, false, 0);
    models.Append(249, 250);
    const int64_t per_key = c.group() * c.head_size;
    for (int64_t kv = 0; kv < kv_heads; ++kv) {
      int64_t expected[8] = {};
      for (int64_t b = 0; b < c.batch; ++b) {
        const auto head = static_cast<size_t>(b * kv_heads + kv);
        const bool row = c.attributes.hold.row_granularity;
        expected[0] += (models[head].coded() - coded[head]) * (row ? 1 : c.head_size);
        expected[1] += models[head].held() - held[head];
        expected[2] += per_key * models[head].tokens();
        expected[3] += (row ? per_key : c.group()) * models[head].held();
        expected[5] += row ? per_key * models[head].held() : 0;
        expected[6] += models[head].bytes();
      }
      expected[4] = expected[2];
      expected[7] = expected[6];
      for (int column = 0; column < 8; ++column) {
        const int64_t found = step.statistics[static_cast<size_t>(kv * 8 + column)];
        EXPECT(found == expected[column], DescribePacked(c), "column ", column, ": ", found, " for ", expected[column]);
      }
    }
  }
}

DELTALLM_TEST(packed_cache, rows_round_to_the_nearest_code_and_keep_what_is_rounded) {
  Random random;
  for (int trial = 0; trial < Trials(3000); ++trial) {
    const int64_t size = random.Int(1, 37);
    const float magnitude = std::pow(10.0f, static_cast<float>(random.Int(-9, 7)));
    std::vector<float> x = random.Normals(size);
    for (float& value : x) value *= magnitude;
    if (trial % 50 == 0) x[0] = std::numeric_limits<float>::infinity();
    if (trial % 50 == 1) x.assign(x.size(), 0.0f);
    if (trial % 50 == 2) x.back() = std::numeric_limits<float>::quiet_NaN();
    const PackedCoding& coding = *AvailableKernels()[static_cast<size_t>(trial) % AvailableKernels().size()]->coding;
    PackedRow row, again;
    coding.round_row(x.data(), size, &row);
    const ModelRow expected = RoundedRow(x.data(), size);
    std::vector<float> decoded(static_cast<size_t>(size + 3));
    coding.decode_row(row, size, decoded.data());
    coding.round_row(decoded.data(), size, &again);
    EXPECT(row.scale == expected.scale, magnitude, " ", row.scale, " ", expected.scale);
    for (int64_t c = 0; c < size; ++c) {
      EXPECT(row.codes[c] == expected.codes[static_cast<size_t>(c)], magnitude, " ", c);
    }
    // Scales with fewer than 11 bits may round another way once the largest code is below 127.
    if (row.scale < 0x0400) continue;
    EXPECT(again.scale == row.scale && std::memcmp(again.codes, row.codes, static_cast<size_t>(size)) == 0, magnitude);
  }
}

DELTALLM_TEST(packed_cache, a_run_ends_at_its_most_tokens) {
  DeltaCase c;
  c.tokens = 32767 + 8 + 5;
  c.head_size = 4;
  c.attributes.num_heads = c.attributes.kv_num_heads = 1;
  c.attributes.has_cache_format = true;
  c.attributes.cache_format = CacheFormat::kInt8;
  c.attributes.attention.delta_window = 8;
  c.attributes.attention.exact_prefill = true;
  c.attributes.hold.row_granularity = true;
  c.cache_type = ElementType::kUint8;
  c.start = {0};
  c.length = {c.tokens};
  c.threshold = {0.5f};
  c.query.assign(static_cast<size_t>(c.tokens * 4), 0.0f);
  c.key.assign(c.query.size(), 1.0f);
  Random random;
  c.value = random.Normals(c.tokens * 4);
  // The cache before the last tokens, and one token at a time from there: nothing reads 32 thousand queries.
  PackedModels models(c);
  models.Append(0, c.tokens);
  PackedLayout layout;
  layout.head_size = 4;
  layout.window = 8;
  layout.SetCapacity(c.tokens);
  std::vector<uint8_t> key(static_cast<size_t>(layout.slab_bytes())), value(key.size());
  const Tensor threshold = FloatTensor(c.threshold, {1});
  const KeyCoder coder(c.attributes.hold, threshold, Tensor{}, 4);
  PackedWriter writer(*AvailableKernels().back()->coding, layout, coder, true, 0, {key.data(), value.data()},
                      PackedState{});
  writer.Append(0, 32770, c.key.data(), c.value.data(), 4);
  writer.Append(32770, c.tokens, c.key.data() + 32770 * 4, c.value.data() + 32770 * 4, 4);
  writer.Finish();
  const std::string found = models[0].Compare(key.data(), value.data(), c.tokens);
  EXPECT(found.empty(), found);
  EXPECT(writer.state().coded_rows == 2 && ReadTag(layout, key.data(), 9) == (0x8000 | 5), writer.state().coded_rows);
}

}  // namespace
}  // namespace deltallm::test
