// ONNX Runtime's C API, as handed over at registration: nothing is linked against libonnxruntime.
#pragma once

#include <onnxruntime_c_api.h>

#include <exception>
#include <new>
#include <stdexcept>

#include "core/refusal.h"

namespace deltallm::ort {

/// The oldest ONNX Runtime 1.x this library works in: it brought KernelContext_ParallelFor.
constexpr uint32_t kOldestApi = 17;

/// The API negotiated by the last Negotiate.
const OrtApi& Api();

/// The version to declare in every OrtCustomOp: the older of these headers' and the runtime's.
uint32_t ApiVersion();

/// Whether InferOutputShapeFn may be set. Up to 1.23, ONNX Runtime dereferences the type of an absent optional input
/// before it calls one: outputs have their types there, but no shapes.
bool ShapeInferenceIsSafe();

/// Agrees on an API version with the running ONNX Runtime. Throws Refusal below kOldestApi.
void Negotiate(const OrtApiBase& base);

/// Throws std::runtime_error with the status' message if there is one.
void Check(OrtStatus* status);

/// Runs body; what it throws becomes a status. To be used at every entry from ONNX Runtime: no exception may pass.
template <typename Body>
OrtStatus* Guarded(const OrtApi& api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Refusal& refusal) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, refusal.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "Out of memory: shorten the context or use a smaller batch.");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

}  // namespace deltallm::ort
