// Every untrusted number that is out of range ends in its sentence, before anything is written.
#include "cache/packed_rows.h"
#include "core/delta_threshold.h"
#include "core/hybrid_window_attention.h"
#include "tests/delta_case.h"

namespace deltallm::test {
namespace {

/// A good call with every input there; each test spoils one thing.
struct Call {
  DeltaAttentionAttributes attributes;
  DeltaAttentionInputs in;
  std::vector<float> floats = std::vector<float>(4096, 0.5f);
  std::vector<int32_t> seqlens{8, 6};
  std::vector<int32_t> total{9};
  std::vector<int64_t> mask = std::vector<int64_t>(2 * 9, 1);
  std::vector<int64_t> positions{6, 7, 8, 4, 5, 6};

  Call() {
    attributes.num_heads = 6;
    attributes.kv_num_heads = 2;
    attributes.do_rotary = true;
    in.query = Floats({2, 3, 6 * 4});
    in.key = in.value = Floats({2, 3, 2 * 4});
    in.past_key = in.past_value = Floats({2, 2, 7, 4});
    in.seqlens_k = TensorOf(seqlens, {2}, ElementType::kInt32);
    in.total_sequence_length = TensorOf(total, {1}, ElementType::kInt32);
    in.cos_cache = in.sin_cache = Floats({9, 2});
    in.position_ids = TensorOf(positions, {2, 3}, ElementType::kInt64);
    in.attention_bias = Floats({1, 6, 3, 9});
    in.head_sink = Floats({6});
    in.threshold = Floats({2});
    in.row_weight = Floats({2, 4});
    in.attention_mask = TensorOf(mask, {2, 9}, ElementType::kInt64);
  }
  Tensor Floats(const Shape& shape) const { return FloatTensor(floats, shape); }
  void WithoutSeqlens() { in.seqlens_k = in.total_sequence_length = Tensor{}; }
};

void Expect(const char* sentence, const std::function<void(Call&)>& spoil) {
  Call call;
  spoil(call);
  const std::string found = RefusalOf([&] {
    call.attributes.Check();
    MakeDeltaPlan(call.attributes, call.in);
  });
  EXPECT(found == sentence, "\n  found:    ", found, "\n  expected: ", sentence);
}

DELTALLM_TEST(refusals, the_call_itself_is_good) {
  Expect("", [](Call&) {});
  Expect("", [](Call& c) { c.WithoutSeqlens(); });
}

DELTALLM_TEST(refusals, shapes_of_query_key_value) {
  Expect("query has shape [2, 3, 25]: give [batch, new tokens, 6 heads x head size].", [](Call& c) {
    c.in.query.shape = {2, 3, 25};
  });
  Expect("query has shape [2, 24]: give [batch, new tokens, 6 heads x head size].", [](Call& c) {
    c.in.query.shape = {2, 24};
  });
  Expect("query has shape [2, 3, 0]: give [batch, new tokens, 6 heads x head size].", [](Call& c) {
    c.in.query.shape = {2, 3, 0};
  });
  Expect("query has shape [2, 3, 24]: give [batch, new tokens, 10 heads x head size] (packed with key and value).",
         [](Call& c) { c.in.key = c.in.value = Tensor{}; });
  Expect("key has shape [2, 2, 8]: give [2, 3, 8] (batch, new tokens, KV heads x head size of this query).",
         [](Call& c) {
           c.in.key.shape = {2, 2, 8};
         });
  Expect("value has shape [1, 3, 8]: give [2, 3, 8] (batch, new tokens, KV heads x head size of this query).",
         [](Call& c) {
           c.in.value.shape = {1, 3, 8};
         });
  Expect("Only one of key and value is given: give both, or neither and a packed query.",
         [](Call& c) { c.in.value = Tensor{}; });
  Expect("key is of type float16: give float32.", [](Call& c) { c.in.key.type = ElementType::kFloat16; });
  Expect("query is of type int32: give float32 or float16.", [](Call& c) { c.in.query.type = ElementType::kInt32; });
}

DELTALLM_TEST(refusals, caches) {
  Expect("past_key has shape [2, 2, 7, 5]: give [2, 2, ?, 4] (batch, KV heads, rows, head size).", [](Call& c) {
    c.in.past_key.shape = {2, 2, 7, 5};
  });
  Expect("past_value has shape [2, 3, 7, 4]: give [2, 2, ?, 4] (batch, KV heads, rows, head size).", [](Call& c) {
    c.in.past_value.shape = {2, 3, 7, 4};
  });
  Expect("past_key has 7 rows and past_value 8: give as many of both.", [](Call& c) {
    c.in.past_value.shape = {2, 2, 8, 4};
  });
  Expect("Only one of past_key and past_value is given: give both or neither.",
         [](Call& c) { c.in.past_key = Tensor{}; });
  Expect("past_key is of type float32, but cache_format is \"float16\": give that type.", [](Call& c) {
    c.attributes.has_cache_format = true;
    c.attributes.cache_format = CacheFormat::kFloat16;
  });
  Expect("past_value is of type float16: give float32.", [](Call& c) { c.in.past_value.type = ElementType::kFloat16; });
  Expect("Batch row 0 has 6 past tokens, but past_key holds 5: give a past_key with at least that many rows.",
         [](Call& c) {
           c.in.past_key.shape = c.in.past_value.shape = {2, 2, 5, 4};
         });
  Expect("The sizes of the inputs multiply to more than memory can hold: give smaller ones.", [](Call& c) {
    c.in.past_key.shape = c.in.past_value.shape = {2, 2, int64_t{1} << 60, 4};
  });
}

DELTALLM_TEST(refusals, lengths) {
  Expect("seqlens_k[1] is -1: give 0 to total_sequence_length - 1 = 8.", [](Call& c) { c.seqlens[1] = -1; });
  Expect("seqlens_k[0] is 9: give 0 to total_sequence_length - 1 = 8.", [](Call& c) { c.seqlens[0] = 9; });
  Expect("seqlens_k[1] says 2 tokens, but the call brings 3 new ones: give at least as many.",
         [](Call& c) { c.seqlens[1] = 1; });
  Expect("seqlens_k has shape [3]: give [2] (batch).", [](Call& c) { c.in.seqlens_k.shape = {3}; });
  Expect("seqlens_k is of type int64: give int32.", [](Call& c) { c.in.seqlens_k.type = ElementType::kInt64; });
  Expect("seqlens_k comes without total_sequence_length: give both.",
         [](Call& c) { c.in.total_sequence_length = Tensor{}; });
  Expect("total_sequence_length comes without seqlens_k: give both.", [](Call& c) { c.in.seqlens_k = Tensor{}; });
  Expect("total_sequence_length is 2 for 3 new tokens: give at least that many.", [](Call& c) { c.total[0] = 2; });
  Expect("total_sequence_length is -7 for 3 new tokens: give at least that many.", [](Call& c) { c.total[0] = -7; });
  Expect("total_sequence_length has shape [2]: give one number.",
         [](Call& c) { c.in.total_sequence_length.shape = {2}; });
  Expect("total_sequence_length has shape [0]: give one number.",
         [](Call& c) { c.in.total_sequence_length.shape = {0}; });
  Expect("attention_mask has 9 columns, but total_sequence_length is 8: give one column per token.", [](Call& c) {
    c.total[0] = 8;
    c.seqlens = {7, 6};
  });
  Expect("attention_mask has a zero between ones at row 1, column 4: it may pad both ends only.", [](Call& c) {
    c.WithoutSeqlens();
    c.mask[9 + 4] = 0;
  });
  for (const int64_t entry : {int64_t{2}, int64_t{-1}, int64_t{1} << 32}) {
    const std::string sentence =
        "attention_mask has a " + std::to_string(entry) + " at row 1, column 3: it may hold 0 and 1 only.";
    Expect(sentence.c_str(), [&](Call& c) { c.mask[9 + 3] = entry; });
    Expect(sentence.c_str(), [&](Call& c) {
      c.WithoutSeqlens();
      c.mask[9 + 3] = entry;
    });
  }
  Expect("attention_mask has 2 columns for 3 new tokens: give at least as many.", [](Call& c) {
    c.WithoutSeqlens();
    c.in.attention_mask.shape = {2, 2};
  });
  Expect("attention_mask has shape [9]: give [2, ?] (batch, past and new tokens).",
         [](Call& c) { c.in.attention_mask.shape = {9}; });
}

DELTALLM_TEST(refusals, rotary) {
  Expect(
      "The token in batch row 0, column 2 stands at position 8, but cos_cache has rows 0 to 7: give a longer "
      "cos_cache or other position_ids.",
      [](Call& c) {
        c.in.cos_cache.shape = c.in.sin_cache.shape = {8, 2};
      });
  Expect(
      "The token in batch row 1, column 0 stands at position -1, but cos_cache has rows 0 to 8: give a longer "
      "cos_cache or other position_ids.",
      [](Call& c) { c.positions[3] = -1; });
  Expect("cos_cache has shape [9, 3]: give [positions, rotated channels / 2], at most 2 columns for head size 4.",
         [](Call& c) {
           c.in.cos_cache.shape = {9, 3};
         });
  Expect("sin_cache has shape [9, 1]: give [9, 2] (as cos_cache).", [](Call& c) { c.in.sin_cache.shape = {9, 1}; });
  Expect("do_rotary is 1 without cos_cache and sin_cache: give both.", [](Call& c) { c.in.sin_cache = Tensor{}; });
  Expect("position_ids has shape [1, 3]: give [2, 3] (batch, new tokens).", [](Call& c) {
    c.in.position_ids.shape = {1, 3};
  });
}

DELTALLM_TEST(refusals, thresholds_bias_and_sinks) {
  Expect("threshold holds nan at index 1: give finite numbers of at least 0.",
         [](Call& c) { c.floats[1] = std::numeric_limits<float>::quiet_NaN(); });
  Expect("threshold holds -0.25 at index 0: give finite numbers of at least 0.", [](Call& c) { c.floats[0] = -0.25f; });
  Expect("threshold holds inf at index 0: give finite numbers of at least 0.",
         [](Call& c) { c.floats[0] = std::numeric_limits<float>::infinity(); });
  Expect("threshold has shape [3]: give [2] or [2, 4] (KV heads, head size).",
         [](Call& c) { c.in.threshold.shape = {3}; });
  Expect("threshold has shape [2, 4]: granularity \"row\" takes one number per KV head, give [2].", [](Call& c) {
    c.attributes.hold.row_granularity = true;
    c.in.threshold.shape = {2, 4};
  });
  Expect("row_weight has shape [2]: give [2, 4] (KV heads, head size).", [](Call& c) { c.in.row_weight.shape = {2}; });
  Expect("attention_bias has shape [1, 6, 3, 8]: give [2 or 1, 6 or 1, 3, 9] (batch, heads, new tokens, total tokens).",
         [](Call& c) {
           c.in.attention_bias.shape = {1, 6, 3, 8};
         });
  Expect("head_sink has shape [2]: give [6] (query heads).", [](Call& c) { c.in.head_sink.shape = {2}; });
}

DELTALLM_TEST(refusals, attributes) {
  Expect("num_heads is 5 and kv_num_heads 2: give positive numbers, the first a multiple of the second.",
         [](Call& c) { c.attributes.num_heads = 5; });
  Expect("num_heads is 0 and kv_num_heads 2: give positive numbers, the first a multiple of the second.",
         [](Call& c) { c.attributes.num_heads = 0; });
  Expect("delta_window is -1: give a whole number of tokens, 0 or more.",
         [](Call& c) { c.attributes.attention.delta_window = -1; });
  Expect("sinks is 2147483648: give a whole number of tokens, 0 or more.",
         [](Call& c) { c.attributes.attention.sinks = int64_t{1} << 31; });
  Expect("refresh is -2: give a whole number of tokens, 0 or more.", [](Call& c) { c.attributes.hold.refresh = -2; });
  Expect("local_window_size is 0: give -1 (none) or at least 1.",
         [](Call& c) { c.attributes.attention.local_window = 0; });
  Expect("v_skip is 1: give a number from 0 up to, but below, 1.",
         [](Call& c) { c.attributes.attention.v_skip = 1.0f; });
  Expect("v_skip is nan: give a number from 0 up to, but below, 1.",
         [](Call& c) { c.attributes.attention.v_skip = std::numeric_limits<float>::quiet_NaN(); });
  Expect("softcap is -1: give 0 (none) or a positive number.", [](Call& c) { c.attributes.attention.softcap = -1.0f; });
  Expect("scale is inf: give a finite number, or 0 for 1/sqrt(head size).",
         [](Call& c) { c.attributes.attention.scale = std::numeric_limits<float>::infinity(); });
  EXPECT(
      RefusalOf([] { ParseGranularity("block"); }) == "granularity is \"block\": choose one of \"element\", \"row\".",
      "granularity");
  EXPECT(RefusalOf([] { ParseRowRule(""); }) == "row_rule is \"\": choose one of \"relative\", \"absolute\".", "rule");
  EXPECT(RefusalOf([] { ParsePrefill("Exact"); }) == "prefill is \"Exact\": choose one of \"exact\", \"delta\".", "");
  EXPECT(RefusalOf([] { ParseCacheFormat("int2"); }) ==
             "cache_format is \"int2\": choose one of \"float32\", \"float16\", \"int8\", \"int4\".",
         "");
}

/// A good call on top of a cache that an earlier one wrote: 20 tokens, 2 KV heads, head size 6.
struct PackedCall {
  DeltaAttentionAttributes attributes;
  DeltaAttentionInputs in;
  std::vector<float> floats = std::vector<float>(4096, 0.5f);
  std::vector<int32_t> seqlens{19}, total{20};
  std::vector<uint8_t> key, value;
  PackedLayout layout;

  PackedCall(CacheFormat format, bool row_granularity) {
    attributes.hold.row_granularity = row_granularity;
    attributes.num_heads = 6;
    attributes.kv_num_heads = 2;
    attributes.has_cache_format = true;
    attributes.cache_format = format;
    attributes.attention.sinks = 1;
    attributes.attention.delta_window = 8;
    Feed(20);
    const DeltaPlan plan = MakeDeltaPlan(attributes, in);
    layout = plan.layout;
    key.resize(static_cast<size_t>(2 * layout.slab_bytes()));
    value.resize(key.size());
    std::vector<float> output(20 * 6 * 6);
    DeltaAttentionOutputs out;
    out.output = {output.data(), ElementType::kFloat32};
    out.present_key = key.data();
    out.present_value = value.data();
    RunDeltaAttention(attributes, in, plan, out, *AvailableKernels()[0], Parallel{});
    in.past_key = TensorOf(key, plan.present_shape(), ElementType::kUint8);
    in.past_value = TensorOf(value, plan.present_shape(), ElementType::kUint8);
    seqlens[0] = 20;
    total[0] = 21;
    Feed(1);
  }
  void Feed(int64_t tokens) {
    in.query = FloatTensor(floats, {1, tokens, 6 * 6});
    in.key = in.value = FloatTensor(floats, {1, tokens, 2 * 6});
    in.seqlens_k = TensorOf(seqlens, {1}, ElementType::kInt32);
    in.total_sequence_length = TensorOf(total, {1}, ElementType::kInt32);
  }
  /// The header of the second KV head.
  void SetTag(int64_t slot, uint16_t tag) { WriteTag(layout, value.data() + layout.slab_bytes(), slot, tag); }
};

void ExpectPacked(CacheFormat format, bool row_granularity, const char* sentence,
                  const std::function<void(PackedCall&)>& spoil) {
  PackedCall call(format, row_granularity);
  spoil(call);
  const std::string found = RefusalOf([&] {
    call.attributes.Check();
    MakeDeltaPlan(call.attributes, call.in);
  });
  EXPECT(found == sentence, "\n  found:    ", found, "\n  expected: ", sentence);
}

DELTALLM_TEST(refusals, packed_caches) {
  const auto int8 = [](const char* sentence, const auto& spoil) {
    ExpectPacked(CacheFormat::kInt8, false, sentence, spoil);
  };
  const auto int8_runs = [](const char* sentence, const auto& spoil) {
    ExpectPacked(CacheFormat::kInt8, true, sentence, spoil);
  };
  const auto int4 = [](const char* sentence, const auto& spoil) {
    ExpectPacked(CacheFormat::kInt4, false, sentence, spoil);
  };
  int8("", [](PackedCall&) {});
  int4("", [](PackedCall&) {});
  int8("sinks + delta_window is 7: cache_format \"int8\" needs at least 8.",
       [](PackedCall& c) { c.attributes.attention.delta_window = 6; });
  int8("The head size is 1025, but cache_format \"int8\" takes at most 1024: use \"float16\".", [](PackedCall& c) {
    c.in.query.shape = {1, 1, 6 * 1025};
    c.in.key.shape = c.in.value.shape = {1, 1, 2 * 1025};
  });
  int8("past_key is of type float32, but cache_format is \"int8\": give uint8.",
       [](PackedCall& c) { c.in.past_key.type = ElementType::kFloat32; });
  int8("past_key is of type uint8, but cache_format is not \"int8\" or \"int4\": set it, or give float32 or float16.",
       [](PackedCall& c) { c.attributes.has_cache_format = false; });
  int4("past_value has shape [1, 2, 38, 13]: give [1, 2, ?, 8] (batch, KV heads, rows, bytes per token).",
       [](PackedCall& c) {
         c.in.past_value.shape = {1, 2, 38, 13};
       });
  int4("past_key of an int4 cache does not say how many tokens it holds: give seqlens_k or attention_mask.",
       [](PackedCall& c) { c.in.seqlens_k = c.in.total_sequence_length = Tensor{}; });
  int8(
      "The past of batch row 0, KV head 1 begins with the mark 0xd401, not 0xd801 of an int8 cache: give the present "
      "of "
      "an earlier call of this layer.",
      [](PackedCall& c) { c.SetTag(0, 0xd401); });
  int8(
      "The past of batch row 0, KV head 0 was written with other sinks or another delta_window than 2 and 7: give the "
      "present of an earlier call of this layer.",
      [](PackedCall& c) {
        c.attributes.attention.sinks = 2;
        c.attributes.attention.delta_window = 7;
      });
  int8(
      "The past of batch row 0, KV head 1 claims 11 coded tokens in 10 rows, but its rows hold one token each: give "
      "the "
      "present of an earlier call of this layer.",
      [](PackedCall& c) { c.SetTag(3, 10); });
  int8_runs(
      "The past of batch row 0, KV head 1 claims 11 coded tokens in 12 rows, but rows hold at least one token each: "
      "give "
      "the present of an earlier call of this layer.",
      [](PackedCall& c) { c.SetTag(3, 12); });
  int8(
      "The past of batch row 0, KV head 1 claims 65547 coded rows, more than its 20 rows can hold: give the present of "
      "an earlier call of this layer.",
      [](PackedCall& c) {
        c.SetTag(2, 1);
        c.SetTag(4, 1);
      });
  int8(
      "The past of batch row 0, KV head 1 has 10 coded tokens, but a past of 20 tokens has at least 11: give the "
      "lengths "
      "of the calls that wrote it.",
      [](PackedCall& c) {
        c.SetTag(1, 10);
        c.SetTag(3, 10);
      });
  int8_runs(
      "The past of batch row 0, KV head 0 is rewound to 9 tokens, but 12 of them are merged into runs, which cannot be "
      "taken back: keep at least that many, or begin anew.",
      [](PackedCall& c) {
        c.seqlens[0] = 9;
        c.total[0] = 10;
      });
  int4(
      "Batch row 0 has 20 past tokens, which need 30 rows of an int4 cache, but past_key has 29: give the present of "
      "an "
      "earlier call of this layer.",
      [](PackedCall& c) {
        c.in.past_key.shape = c.in.past_value.shape = {1, 2, 29, 8};
      });
}

DELTALLM_TEST(refusals, one_buffer_for_caches_of_different_capacity) {
  Call call;
  const DeltaPlan plan = MakeDeltaPlan(call.attributes, call.in);
  std::vector<float> output(4096), cache(4096);
  DeltaAttentionOutputs out;
  out.output = {output.data(), ElementType::kFloat32};
  out.present_key = const_cast<void*>(call.in.past_key.data);
  out.present_value = cache.data();
  const std::string found =
      RefusalOf([&] { RunDeltaAttention(call.attributes, call.in, plan, out, *AvailableKernels()[0], Parallel{}); });
  EXPECT(found ==
             "past_key and present_key share a buffer, but one has 7 rows and the other 9: give a past_key with "
             "at least 9 rows.",
         found);
}

DELTALLM_TEST(refusals, smaller_operators) {
  const std::vector<float> floats(4096, 0.5f);
  const std::vector<int64_t> lengths{4, 4};
  HybridWindowInputs window;
  window.query = FloatTensor(floats, {2, 6, 3, 4});
  window.key = window.held_key = window.value = FloatTensor(floats, {2, 2, 5, 4});
  window.past_length = window.start = window.length = TensorOf(lengths, {2}, ElementType::kInt64);
  EXPECT(RefusalOf([&] { MakeHybridWindowPlan(window); }).empty(), "good");
  const std::vector<int64_t> long_lengths{4, 6};
  HybridWindowInputs spoiled = window;
  spoiled.length = TensorOf(long_lengths, {2}, ElementType::kInt64);
  EXPECT(RefusalOf([&] { MakeHybridWindowPlan(spoiled); }) == "length[1] is 6: give 0 to 5.", "length");
  spoiled = window;
  spoiled.key.shape = {2, 4, 5, 4};
  EXPECT(RefusalOf([&] { MakeHybridWindowPlan(spoiled); }) ==
             "key has shape [2, 4, 5, 4] for a query of shape [2, 6, 3, 4]: give [batch, KV heads, rows, head size], "
             "the query's heads a multiple of the KV heads.",
         "key");
  spoiled = window;
  spoiled.attention_bias = FloatTensor(floats, {1, 1, 3, 3});
  EXPECT(RefusalOf([&] { MakeHybridWindowPlan(spoiled); }) ==
             "attention_bias has 3 columns, but length[0] is 4: give one column per row of the cache.",
         "bias");

  DeltaThresholdInputs hold;
  hold.key = FloatTensor(floats, {2, 3, 5, 4});
  hold.reference = FloatTensor(floats, {2, 3, 4});
  hold.threshold = FloatTensor(floats, {3});
  EXPECT(RefusalOf([&] { CheckDeltaThreshold({}, hold); }).empty(), "good");
  hold.reference.shape = {2, 4};
  EXPECT(RefusalOf([&] { CheckDeltaThreshold({}, hold); }) ==
             "reference has shape [2, 4]: give [2, 3, 4] (batch, KV heads, head size).",
         "reference");
}

}  // namespace
}  // namespace deltallm::test
