#include "core/hybrid_window_attention.h"

#include "core/attend.h"
#include "core/refusal.h"

namespace deltallm {
namespace {

int64_t TokensAt(const char* name, const Tensor& tensor, int64_t b, int64_t most) {
  const int64_t value = tensor.as<int64_t>()[b];
  if (value < 0 || value > most) Refuse(name, "[", b, "] is ", value, ": give 0 to ", most, ".");
  return value;
}

}  // namespace

HybridWindowPlan MakeHybridWindowPlan(const HybridWindowInputs& in) {
  HybridWindowPlan plan;
  CheckFloat("query", in.query);
  CheckFloat("key", in.key);
  const Shape& query = in.query.shape;
  const Shape& key = in.key.shape;
  if (query.rank() != 4 || query[1] < 1 || query[3] < 1) {
    Refuse("query has shape ", query.ToString(), ": give [batch, heads, new tokens, head size].");
  }
  if (key.rank() != 4 || key[0] != query[0] || key[3] != query[3] || key[1] < 1 || query[1] % key[1] != 0) {
    Refuse("key has shape ", key.ToString(), " for a query of shape ", query.ToString(),
           ": give [batch, KV heads, rows, head size], the query's heads a multiple of the KV heads.");
  }
  plan.geometry = {query[0], query[2], query[1], key[1], query[3]};
  plan.capacity = key[2];
  CheckedProduct({key[0], key[1], key[2], key[3], 8});
  CheckedProduct({query[0], query[1], query[2], query[3], key[2]});
  for (const auto& [name, tensor] : {std::pair{"held_key", &in.held_key}, std::pair{"value", &in.value}}) {
    CheckType(name, *tensor, in.key.type);
    CheckShape(name, *tensor, key, "as key");
  }
  for (const auto& [name, tensor] :
       {std::pair{"past_length", &in.past_length}, std::pair{"start", &in.start}, std::pair{"length", &in.length}}) {
    CheckType(name, *tensor, ElementType::kInt64);
    CheckShape(name, *tensor, Shape{query[0]}, "batch");
  }
  for (int64_t b = 0; b < query[0]; ++b) {
    plan.rows.push_back({TokensAt("past_length", in.past_length, b, plan.capacity),
                         TokensAt("start", in.start, b, plan.capacity),
                         TokensAt("length", in.length, b, plan.capacity)});
  }
  if (in.attention_bias.present && in.attention_bias.shape.rank() == 4) {
    // Columns beyond the longest row are not read; GroupQueryAttention's bias ends at the total length.
    const int64_t columns = in.attention_bias.shape[3];
    for (size_t b = 0; b < plan.rows.size(); ++b) {
      if (plan.rows[b].length > columns) {
        Refuse("attention_bias has ", columns, " columns, but length[", b, "] is ", plan.rows[b].length,
               ": give one column per row of the cache.");
      }
    }
    CheckAttentionBias(in.attention_bias, plan.geometry, columns);
  } else {
    CheckAttentionBias(in.attention_bias, plan.geometry, plan.capacity);
  }
  CheckHeadSink(in.head_sink, plan.geometry.query_heads);
  return plan;
}

void RunHybridWindowAttention(const AttentionRules& rules, const HybridWindowInputs& in, const HybridWindowPlan& plan,
                              void* output, const Kernels& kernels, const Parallel& parallel) {
  const Geometry& geometry = plan.geometry;
  const RowLayout layout{geometry.query_heads * geometry.new_tokens * geometry.head_size, geometry.head_size,
                         geometry.new_tokens * geometry.head_size};
  const std::vector<int64_t> held_begin(static_cast<size_t>(geometry.batch), 0);
  const auto rows_of = [&](const Tensor& tensor) {
    return ConstFloatCache{tensor.as<char>(), tensor.type, plan.capacity, geometry.head_size};
  };
  AttendCall call;
  call.kernels = &kernels;
  call.geometry = geometry;
  call.rules = rules;
  call.spans = plan.rows.data();
  call.query = {in.query.as<char>(), in.query.type, layout, geometry.head_size, geometry.new_tokens, nullptr};
  call.rows = {rows_of(in.key), rows_of(in.value), rows_of(in.held_key), held_begin.data()};
  call.bias = in.attention_bias;
  call.head_sink = in.head_sink;
  call.output = {static_cast<char*>(output), in.query.type, layout, geometry.head_size};
  Attend(call, parallel);
}

}  // namespace deltallm
