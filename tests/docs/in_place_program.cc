// What ONNX Runtime's Java and Objective-C bindings make of the lines in docs/deploy-*.md, in their own calls of the C API:
// registers the operators by a bare name or by a function, then runs with each cache as input and as output of plain Run.
// Arguments: libonnxruntime, libdeltallm_ops, "library" | "pointer", model, layers, KV heads, rows, row size, new tokens, prompt…
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ort/deltallm_ops.h"

static const OrtApi* api = nullptr;

static void Check(OrtStatus* status) {
  if (status == nullptr) return;
  std::printf("%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

static OrtValue* Tensor(const OrtMemoryInfo* memory, void* data, size_t bytes, std::vector<int64_t> shape,
                        ONNXTensorElementDataType type) {
  OrtValue* value = nullptr;
  Check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), shape.size(), type, &value));
  return value;
}

int main(int argc, char** argv) {
  void* const runtime = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  void* const ops = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);  // System.loadLibrary
  if (runtime == nullptr || ops == nullptr) return std::puts(dlerror()), 1;
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"))();
  api = base->GetApi(17);
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  Check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "app", &env));
  Check(api->CreateSessionOptions(&options));
  Check(api->DisableCpuMemArena(options));
  Check(api->DisableMemPattern(options));
  Check(api->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", "0"));
  if (argv[3] == std::string("library")) {
    void* handle = nullptr;
    Check(api->RegisterCustomOpsLibrary(options, "libdeltallm_ops.so", &handle));
  } else {
    const auto function = reinterpret_cast<decltype(&DeltaLLMRegisterCustomOps)>(dlsym(ops, "DeltaLLMRegisterCustomOps"));
    Check(function(options, base));
  }
  Check(api->CreateSession(env, argv[4], options, &session));
  Check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));

  const int layers = std::atoi(argv[5]), wanted = std::atoi(argv[9]);
  const int64_t heads = std::atoll(argv[6]), rows = std::atoll(argv[7]), row_size = std::atoll(argv[8]);
  std::vector<std::string> in{"input_ids", "attention_mask", "position_ids"}, out{"logits"};
  std::vector<OrtValue*> caches;
  for (int layer = 0; layer < layers; ++layer) {
    for (const char* role : {"key", "value"}) {
      const std::string suffix = "." + std::to_string(layer) + "." + role;
      in.push_back("past_key_values" + suffix);
      out.push_back("present" + suffix);
      const size_t bytes = static_cast<size_t>(heads * rows * row_size);
      caches.push_back(Tensor(memory, std::calloc(bytes, 1), bytes, {1, heads, rows, row_size},
                              ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8));
    }
  }
  std::vector<const char*> in_names, out_names;
  for (const std::string& name : in) in_names.push_back(name.c_str());
  for (const std::string& name : out) out_names.push_back(name.c_str());

  std::vector<int64_t> tokens, positions, mask;
  for (int i = 10; i < argc; ++i) tokens.push_back(std::atoll(argv[i]));
  for (int made = 0; made < wanted; ++made) {
    positions.clear();
    for (size_t i = 0; i < tokens.size(); ++i) positions.push_back(static_cast<int64_t>(mask.size() + i));
    mask.resize(mask.size() + tokens.size(), 1);
    std::vector<OrtValue*> inputs;
    for (std::vector<int64_t>* values : {&tokens, &mask, &positions}) {
      inputs.push_back(Tensor(memory, values->data(), values->size() * sizeof(int64_t),
                              {1, static_cast<int64_t>(values->size())}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
    }
    inputs.insert(inputs.end(), caches.begin(), caches.end());
    std::vector<OrtValue*> outputs{nullptr};
    outputs.insert(outputs.end(), caches.begin(), caches.end());
    Check(api->Run(session, nullptr, in_names.data(), inputs.data(), inputs.size(), out_names.data(), outputs.size(),
                   outputs.data()));
    if (!std::equal(caches.begin(), caches.end(), outputs.begin() + 1)) return std::puts("other caches came back"), 1;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    size_t count = 0;
    float* logits = nullptr;
    Check(api->GetTensorTypeAndShape(outputs[0], &info));
    Check(api->GetTensorShapeElementCount(info, &count));
    Check(api->GetTensorMutableData(outputs[0], reinterpret_cast<void**>(&logits)));
    const size_t vocabulary = count / tokens.size();
    const float* const last = logits + count - vocabulary;
    tokens = {std::max_element(last, last + vocabulary) - last};
    std::printf("%lld ", static_cast<long long>(tokens[0]));
    api->ReleaseTensorTypeAndShapeInfo(info);
    api->ReleaseValue(outputs[0]);
    for (int i = 0; i < 3; ++i) api->ReleaseValue(inputs[i]);
  }
  return 0;
}
