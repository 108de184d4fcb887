// An app that links the operators in, beside another library that exports RegisterCustomOps: registers both, opens a model.
#include <dlfcn.h>

#include <cstdio>

#include "ort/deltallm_ops.h"

static int others_called = 0;

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase*) {
  ++others_called;
  return nullptr;
}

int main(int, char** argv) {
  void* const handle = dlopen(argv[1], RTLD_NOW);
  if (handle == nullptr) return std::puts(dlerror()), 1;
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"))();
  const OrtApi* const api = base->GetApi(17);
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  size_t inputs = 0;
  OrtStatus* status = api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "app", &env);
  if (status == nullptr) status = api->CreateSessionOptions(&options);
  if (status == nullptr) status = RegisterCustomOps(options, base);
  if (status == nullptr) status = DeltaLLMRegisterCustomOps(options, base);
  if (status == nullptr) status = api->CreateSession(env, argv[2], options, &session);
  if (status == nullptr) status = api->SessionGetInputCount(session, &inputs);
  if (status != nullptr) return std::puts(api->GetErrorMessage(status)), 1;
  std::printf("inputs %zu others %d\n", inputs, others_called);
  return 0;
}
