// What the library exports.
#include "ort/deltallm_ops.h"

#include "ort/operators.h"

namespace deltallm::ort {
namespace {

/// The domain and its operators live as long as the process: sessions refer to them.
OrtCustomOpDomain* Domain() {
  static OrtCustomOpDomain* const domain = [] {
    static const CustomOpFamily<DeltaAttentionOp> delta_attention(ApiVersion());
    static const CustomOpFamily<DeltaThresholdOp> delta_threshold(ApiVersion());
    static const CustomOpFamily<HybridWindowAttentionOp> hybrid_window_attention(ApiVersion());
    OrtCustomOpDomain* created = nullptr;
    Check(Api().CreateCustomOpDomain("ai.deltallm", &created));
    delta_attention.AddTo(created);
    delta_threshold.AddTo(created);
    hybrid_window_attention.AddTo(created);
    return created;
  }();
  return domain;
}

}  // namespace
}  // namespace deltallm::ort

#define DELTALLM_EXPORT __attribute__((visibility("default")))

extern "C" DELTALLM_EXPORT OrtStatus* ORT_API_CALL DeltaLLMRegisterCustomOps(OrtSessionOptions* options,
                                                                             const OrtApiBase* base) {
  // Version 1 of the API exists in every ONNX Runtime: enough to say what is wrong.
  const OrtApi* oldest = base->GetApi(1);
  return deltallm::ort::Guarded(*oldest, [&] {
    deltallm::ort::Negotiate(*base);
    deltallm::ort::Check(deltallm::ort::Api().AddCustomOpDomain(options, deltallm::ort::Domain()));
  });
}

#ifndef DELTALLM_UNIQUE_SYMBOL_ONLY
/// The name that RegisterCustomOpsLibrary_V2 looks for.
extern "C" DELTALLM_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                     const OrtApiBase* base) {
  return DeltaLLMRegisterCustomOps(options, base);
}
#endif
