// The one function the library exports.
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

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                            const OrtApiBase* base) {
  // Version 1 of the API exists in every ONNX Runtime: enough to say what is wrong.
  const OrtApi* oldest = base->GetApi(1);
  return deltallm::ort::Guarded(*oldest, [&] {
    deltallm::ort::Negotiate(*base);
    deltallm::ort::Check(deltallm::ort::Api().AddCustomOpDomain(options, deltallm::ort::Domain()));
  });
}
