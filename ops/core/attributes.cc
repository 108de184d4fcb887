#include "core/attributes.h"

#include <cmath>

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

ElementType ParseCacheFormat(const std::string& text) {
  if (text == "float32") return ElementType::kFloat32;
  if (text == "float16") return ElementType::kFloat16;
  Refuse("cache_format is \"", text, "\": this library stores \"float32\" and \"float16\".");
}

}  // namespace deltallm
