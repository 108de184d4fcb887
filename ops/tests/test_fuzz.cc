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

DELTALLM_TEST(fuzz, any_call_ends_in_a_result_or_a_sentence) {
  Random random;
  int ran = 0;
  for (int trial = 0; trial < 20000; ++trial) ran += RunOnce(random) ? 1 : 0;
  EXPECT(ran > 1000 && ran < 19000, "one-sided test: ", ran, " of 20000 ran");
}

}  // namespace
}  // namespace deltallm::test
