// The ai.deltallm operators for programs that link them in, in C: a bridging header can include it.
#pragma once

#include <onnxruntime_c_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Makes the operators known to sessions created with these options; the name is this library's alone. Hand it to
/// registerCustomOpsUsingFunctionPointer (Objective-C), registerCustomOps(functionPointer:) (Swift), or call it.
///
/// @param options changed in place; register once per options.
/// @param api OrtGetApiBase().
/// @return null, or a status with the reason, which the caller releases.
OrtStatus* ORT_API_CALL DeltaLLMRegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* api);

#ifdef __cplusplus
}
#endif
