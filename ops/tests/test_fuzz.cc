// Calls with random dimensions and numbers: each ends in a result or in a sentence. What proves something here is the
// build with sanitizers: every tensor has exactly the memory its shape says.
#include "tests/delta_case.h"

namespace deltallm::test {
namespace {

/// Tensors that own their memory.
class Memory {
 public:
  explicit Memory(Random& random) : random_(random) {}

  /// Random numbers of the type and shape; integers around the sizes in use.
  Tensor Make(ElementType type, const Shape& shape) {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    std::vector<char>& bytes = blocks_.emplace_back(static_cast<size_t>(count * ElementSize(type)));
    for (int64_t i = 0; i < count; ++i) {
      if (type == ElementType::kFloat32) {
        Put(bytes, i, std::fabs(random_.Normal()));
      } else if (type == ElementType::kFloat16) {
        Put(bytes, i, FloatToHalf(std::fabs(random_.Normal())));
      } else if (type == ElementType::kInt32) {
        Put(bytes, i, static_cast<int32_t>(random_.Int(-1, 9)));
      } else if (type == ElementType::kUint8) {
        Put(bytes, i, static_cast<uint8_t>(random_.Int(0, 255)));
      } else {
        Put(bytes, i, random_.Int(0, 8) == 0 ? random_.Int(-1, 9) : int64_t{1});
      }
    }
    return {bytes.data(), type, shape, true};
  }

 private:
  template <typename T>
  static void Put(std::vector<char>& bytes, int64_t i, T value) {
    std::memcpy(bytes.data() + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
  }

  Random& random_;
  std::vector<std::vector<char>> blocks_;
};

/// The shape, now and then with a wrong dimension or rank.
Shape Spoil(Random& random, const Shape& shape) {
  if (random.Int(0, 19) != 0) return shape;
  std::vector<int64_t> dims(shape.begin(), shape.end());
  if (dims.empty() || random.Int(0, 3) == 0) {
    dims.push_back(random.Int(0, 3));
  } else {
    dims[static_cast<size_t>(random.Int(0, static_cast<int64_t>(dims.size()) - 1))] = random.Int(0, 5);
  }
  return Shape(dims.data(), dims.size());
}

/// True if the call ran, false if it was refused.
bool RunOnce(Random& random) {
  Memory memory(random);
  DeltaAttentionAttributes attributes;
  attributes.kv_num_heads = random.Int(1, 2);
  attributes.num_heads = attributes.kv_num_heads * random.Int(1, 3);
  attributes.do_rotary = random.Int(0, 1) == 1;
  attributes.rotary_interleaved = random.Int(0, 1) == 1;
  attributes.attention.delta_window = random.Int(0, 3);
  attributes.attention.sinks = random.Pick<int64_t>({0, 2, int64_t{1} << 30});
  attributes.attention.local_window = random.Pick<int64_t>({-1, 2, int64_t{1} << 30});
  attributes.attention.exact_prefill = random.Int(0, 1) == 1;
  attributes.attention.v_skip = random.Pick({0.0f, 0.1f});
  attributes.hold.row_granularity = random.Int(0, 1) == 1;
  attributes.hold.refresh = random.Int(0, 3);
  const int64_t batch = random.Int(0, 2);
  const int64_t new_tokens = random.Int(0, 4);
  const int64_t past = random.Int(0, 5);
  const int64_t size = random.Int(1, 9);
  const int64_t heads = attributes.num_heads;
  const int64_t kv_heads = attributes.kv_num_heads;
  const bool packed = random.Int(0, 1) == 1;
  const ElementType type = random.Pick({ElementType::kFloat32, ElementType::kFloat16});
  const ElementType cache = random.Pick({ElementType::kFloat32, ElementType::kFloat16});
  const auto make = [&](ElementType of, const Shape& shape) { return memory.Make(of, Spoil(random, shape)); };
  const auto maybe = [&](Tensor& tensor, ElementType of, const Shape& shape) {
    if (random.Int(0, 1) == 1) tensor = make(of, shape);
  };

  DeltaAttentionInputs in;
  in.query = make(type, {batch, new_tokens, (packed ? heads + 2 * kv_heads : heads) * size});
  if (!packed) {
    in.key = make(type, {batch, new_tokens, kv_heads * size});
    in.value = make(type, {batch, new_tokens, kv_heads * size});
  }
  in.past_key = make(cache, {batch, kv_heads, past, size});
  in.past_value = make(cache, {batch, kv_heads, past, size});
  if (random.Int(0, 1) == 1) {
    in.seqlens_k = make(ElementType::kInt32, {batch});
    in.total_sequence_length = make(ElementType::kInt32, {1});
  }
  maybe(in.attention_mask, ElementType::kInt64, {batch, past + new_tokens});
  in.cos_cache = make(type, {9, std::max<int64_t>(1, size / 2)});
  in.sin_cache = make(type, {9, std::max<int64_t>(1, size / 2)});
  maybe(in.position_ids, ElementType::kInt64, {batch, new_tokens});
  maybe(in.attention_bias, type, {1, heads, new_tokens, past + new_tokens});
  maybe(in.head_sink, type, {heads});
  maybe(in.threshold, ElementType::kFloat32, {kv_heads});
  maybe(in.row_weight, ElementType::kFloat32, {kv_heads, size});
  try {
    const DeltaPlan plan = MakeDeltaPlan(attributes, in);
    const Tensor output = memory.Make(in.query.type, plan.output_shape());
    const Tensor key = memory.Make(plan.cache_type, plan.present_shape());
    const Tensor value = memory.Make(plan.cache_type, plan.present_shape());
    std::vector<int64_t> statistics(static_cast<size_t>(kv_heads * 8));
    DeltaAttentionOutputs out;
    out.output = {const_cast<void*>(output.data), output.type};
    out.present_key = const_cast<void*>(key.data);
    out.present_value = const_cast<void*>(value.data);
    if (random.Int(0, 1) == 1) out.statistics = statistics.data();
    RunDeltaAttention(attributes, in, plan, out, *AvailableKernels().back(), Serial());
    return true;
  } catch (const Refusal& refusal) {
    const std::string sentence = refusal.what();
    EXPECT(!sentence.empty() && sentence.back() == '.', sentence);
    return false;
  }
}

/// A packed cache that a first call wrote, then spoiled in a few bytes, and read by a second call with lengths of its
/// own choosing. True if the second call ran.
bool RunOnSpoiledCache(Random& random) {
  Memory memory(random);
  DeltaAttentionAttributes attributes;
  attributes.kv_num_heads = random.Int(1, 2);
  attributes.num_heads = attributes.kv_num_heads * random.Int(1, 3);
  attributes.has_cache_format = true;
  attributes.cache_format = random.Pick({CacheFormat::kInt8, CacheFormat::kInt4});
  attributes.attention.sinks = random.Int(0, 3);
  attributes.attention.delta_window = random.Int(5, 12);
  attributes.attention.local_window = random.Pick<int64_t>({-1, -1, 6});
  attributes.attention.exact_prefill = random.Int(0, 1) == 1;
  attributes.attention.v_skip = random.Pick({0.0f, 0.1f});
  attributes.hold.row_granularity = random.Int(0, 1) == 1;
  const int64_t kv_heads = attributes.kv_num_heads;
  const int64_t size = random.Int(1, 9);
  const int64_t batch = random.Int(1, 2);
  int64_t past = 0;
  DeltaAttentionInputs in;
  Tensor present_key, present_value;
  bool ran = false;
  for (int call = 0; call < 3; ++call) {
    const int64_t new_tokens = random.Pick<int64_t>({1, 1, 2, 5, call == 0 ? 300 : 30});
    std::vector<int32_t> seqlens, total{static_cast<int32_t>(past + new_tokens)};
    for (int64_t b = 0; b < batch; ++b) seqlens.push_back(total[0] - 1 - static_cast<int32_t>(random.Int(0, 2)));
    in.query = memory.Make(ElementType::kFloat32, {batch, new_tokens, attributes.num_heads * size});
    in.key = in.value = memory.Make(ElementType::kFloat32, {batch, new_tokens, kv_heads * size});
    in.threshold = memory.Make(ElementType::kFloat32, {kv_heads});
    in.seqlens_k = TensorOf(seqlens, {batch}, ElementType::kInt32);
    in.total_sequence_length = TensorOf(total, {1}, ElementType::kInt32);
    try {
      attributes.Check();
      const DeltaPlan plan = MakeDeltaPlan(attributes, in);
      const bool in_place = call > 0 && plan.past_capacity == plan.capacity && random.Int(0, 1) == 1;
      if (!in_place) {
        present_key = memory.Make(ElementType::kUint8, plan.present_shape());
        present_value = memory.Make(ElementType::kUint8, plan.present_shape());
      }
      const Tensor output = memory.Make(ElementType::kFloat32, plan.output_shape());
      std::vector<int64_t> statistics(static_cast<size_t>(kv_heads * 8));
      DeltaAttentionOutputs out;
      out.output = {const_cast<void*>(output.data), output.type};
      out.present_key = const_cast<void*>(present_key.data);
      out.present_value = const_cast<void*>(present_value.data);
      if (random.Int(0, 1) == 1) out.statistics = statistics.data();
      RunDeltaAttention(attributes, in, plan, out, *AvailableKernels().back(), Serial());
      past = total[0];
      ran = call > 0;
      const Shape shape = plan.present_shape();
      in.past_key = {present_key.data, ElementType::kUint8, shape, true};
      in.past_value = {present_value.data, ElementType::kUint8, shape, true};
      const int64_t bytes = shape[0] * shape[1] * shape[2] * shape[3];
      for (int64_t n = random.Pick<int64_t>({0, 1, 4, 40}); n > 0; --n) {
        const Tensor& spoiled = random.Int(0, 1) == 1 ? present_key : present_value;
        static_cast<char*>(const_cast<void*>(spoiled.data))[random.Int(0, bytes - 1)] =
            static_cast<char>(random.Int(0, 255));
      }
      // Lengths that are not those of the call before, and a buffer that is shorter than it says.
      if (random.Int(0, 3) == 0) past = std::max<int64_t>(0, past - random.Int(0, 20));
      if (random.Int(0, 9) == 0) {
        const int64_t fewer = random.Int(0, shape[2]);
        in.past_key.shape = in.past_value.shape = {shape[0], shape[1], fewer, shape[3]};
        past = std::min(past, fewer);
      }
    } catch (const Refusal& refusal) {
      const std::string sentence = refusal.what();
      EXPECT(!sentence.empty() && sentence.back() == '.', sentence);
      return false;
    }
  }
  return ran;
}

DELTALLM_TEST(fuzz, a_spoiled_packed_cache_ends_in_a_result_or_a_sentence) {
  Random random;
  int ran = 0;
  for (int trial = 0; trial < 3000; ++trial) ran += RunOnSpoiledCache(random) ? 1 : 0;
  EXPECT(ran > 150 && ran < 2850, "one-sided test: ", ran, " of 3000 ran");
}

DELTALLM_TEST(fuzz, any_call_ends_in_a_result_or_a_sentence) {
  Random random;
  int ran = 0;
  for (int trial = 0; trial < 20000; ++trial) ran += RunOnce(random) ? 1 : 0;
  EXPECT(ran > 1000 && ran < 19000, "one-sided test: ", ran, " of 20000 ran");
}

}  // namespace
}  // namespace deltallm::test
