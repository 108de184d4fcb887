#include "core/attributes.h"

#include <cmath>

#include "cache/packed_layout.h"
#include "core/refusal.h"

namespace deltallm {
namespace {

void CheckTokens(const char* name, int64_t value) {
  // Positions are added to these; 2^31 keeps every sum far from overflow and is longer than any context.
  if (value < 0 || value >= (int64_t{1} << 31)) {
    Refuse(name, " is ", value, ": give a whole number of tokens, 0 or more.");
  }
}

}  // namespace

void AttentionRules::Check() const {
  if (!std::isfinite(scale)) Refuse("scale is ", scale, ": give a finite number, or 0 for 1/sqrt(head size).");
  if (!std::isfinite(softcap) || softcap < 0.0f) {
    Refuse("softcap is ", softcap, ": give 0 (none) or a positive number.");
  }
  if (local_window != -1 && (local_window < 1 || local_window >= (int64_t{1} << 31))) {
    Refuse("local_window_size is ", local_window, ": give -1 (none) or at least 1.");
  }
  CheckTokens("delta_window", delta_window);
  CheckTokens("sinks", sinks);
  if (!(v_skip >= 0.0f && v_skip < 1.0f)) {
    Refuse("v_skip is ", v_skip, ": give a number from 0 up to, but below, 1.");
  }
}

void HoldRules::Check() const { CheckTokens("refresh", refresh); }

void DeltaAttentionAttributes::Check() const {
  constexpr int64_t kMostHeads = 1 << 20;
  if (num_heads < 1 || num_heads > kMostHeads || kv_num_heads < 1 || num_heads % kv_num_heads != 0) {
    Refuse("num_heads is ", num_heads, " and kv_num_heads ", kv_num_heads,
           ": give positive numbers, the first a multiple of the second.");
  }
  attention.Check();
  hold.Check();
  const int64_t exact = attention.sinks + attention.delta_window;
  if (packed_cache() && exact < PackedLayout::kFewestExactSlots) {
    Refuse("sinks + delta_window is ", exact, ": cache_format \"", FormatName(cache_format), "\" needs at least ",
           PackedLayout::kFewestExactSlots, ".");
  }
}

bool ParseGranularity(const std::string& text) {
  if (text != "element" && text != "row") {
    Refuse("granularity is \"", text, "\": choose one of \"element\", \"row\".");
  }
  return text == "row";
}

RowRule ParseRowRule(const std::string& text) {
  if (text == "relative") return RowRule::kRelative;
  if (text == "absolute") return RowRule::kAbsolute;
  Refuse("row_rule is \"", text, "\": choose one of \"relative\", \"absolute\".");
}

bool ParsePrefill(const std::string& text) {
  if (text != "exact" && text != "delta") {
    Refuse("prefill is \"", text, "\": choose one of \"exact\", \"delta\".");
  }
  return text == "exact";
}

PrefillCompute ParsePrefillCompute(const std::string& text) {
  if (text == "float32") return PrefillCompute::kFloat32;
  if (text == "bfloat16") return PrefillCompute::kBfloat16;
  if (text == "int8") return PrefillCompute::kInt8;
  Refuse("prefill_compute is \"", text, "\": choose one of \"float32\", \"bfloat16\", \"int8\".");
}

CacheFormat ParseCacheFormat(const std::string& text) {
  for (const CacheFormat format :
       {CacheFormat::kFloat32, CacheFormat::kFloat16, CacheFormat::kInt8, CacheFormat::kInt4}) {
    if (text == FormatName(format)) return format;
  }
  Refuse("cache_format is \"", text, "\": choose one of \"float32\", \"float16\", \"int8\", \"int4\".");
}

}  // namespace deltallm
