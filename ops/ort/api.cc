#include "ort/api.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <string>

namespace deltallm::ort {
namespace {

std::atomic<const OrtApi*> negotiated_api{nullptr};
std::atomic<uint32_t> negotiated_version{0};
std::atomic<bool> shape_inference_is_safe{false};

}  // namespace

const OrtApi& Api() { return *negotiated_api.load(std::memory_order_acquire); }

uint32_t ApiVersion() { return negotiated_version; }

bool ShapeInferenceIsSafe() { return shape_inference_is_safe; }

void Negotiate(const OrtApiBase& base) {
  const char* text = base.GetVersionString();
  unsigned major = 0;
  unsigned minor = 0;
  if (text == nullptr || std::sscanf(text, "%u.%u", &major, &minor) != 2) {
    Refuse("ONNX Runtime calls itself version '", text == nullptr ? "" : text, "': 1.17 or newer is needed.");
  }
  // ONNX Runtime 1.n offers API n; asking for a newer one prints an error and gives nothing.
  const uint32_t version = major > 1 ? ORT_API_VERSION : std::min<uint32_t>(ORT_API_VERSION, minor);
  if (major < 1 || version < kOldestApi) {
    Refuse("This is ONNX Runtime ", text, ": the ai.deltallm operators need 1.", kOldestApi, " or newer.");
  }
  const OrtApi* api = base.GetApi(version);
  if (api == nullptr) {
    Refuse("ONNX Runtime ", text, " does not offer its API version ", version, ": install an official release.");
  }
  negotiated_version = version;
  shape_inference_is_safe = major > 1 || minor >= 24;
  negotiated_api.store(api, std::memory_order_release);
}

void Check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = Api().GetErrorMessage(status);
  Api().ReleaseStatus(status);
  throw std::runtime_error(message);
}

}  // namespace deltallm::ort
