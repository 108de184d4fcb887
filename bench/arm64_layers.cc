// Runs attention layers call by call, and marks in qemu's log where a call begins and ends:
//   arm64_layers PLAN [ONNXRUNTIME OPERATORS]
// PLAN has a line per layer: its folder, the tokens in its caches, and how many tokens to decode. A folder has
// model.onnx and INPUT.bin for every input that is not a length. Left in it: output.bin of the last call, or
// refusal.txt. Left in PLAN.maps: what lies where in memory. Before the layers come four intervals of known length.
// bench/count_instructions.cc finds the marks, bench/instruction_counts.py starts both.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "runtime.h"

// A call to the system is in qemu's log, in its place; closing a file that cannot be does nothing.
static void Begin() { syscall(SYS_close, -1001); }
static void End() { syscall(SYS_close, -1002); }

static void Loop(int64_t rounds) {
  asm volatile("1: subs %0, %0, #1\n b.ne 1b" : "+r"(rounds) : : "cc");  // two instructions a round
}

static void KnownIntervals() {
  Begin();
  End();
  Begin();
  Loop(1000);
  End();
  Begin();
  Loop(50000);
  End();
  Begin();
  asm volatile(".rept 3000\n nop\n .endr");  // longer than a block and than a page's half
  End();
}

static std::vector<char> Content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Refusal(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

static Ort::SessionOptions Options(const char* operators) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1).SetInterOpNumThreads(1);
  options.RegisterCustomOpsLibrary(operators);
  return options;
}

/// Where the memory of an input's tensor lies, and its value; the one axis of unknown length is told by the bytes.
static Ort::Value Tensor(const Ort::TypeInfo& info, void* data, size_t bytes) {
  const Ort::ConstTensorTypeAndShapeInfo tensor = info.GetTensorTypeAndShapeInfo();
  const ONNXTensorElementDataType type = tensor.GetElementType();
  const std::map<ONNXTensorElementDataType, int64_t> sizes{{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},
                                                           {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
                                                           {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}};
  std::vector<int64_t> shape = tensor.GetShape();
  int64_t known = sizes.count(type) ? sizes.at(type) : 1;
  for (const int64_t size : shape) known *= size < 0 ? 1 : size;
  for (int64_t& size : shape) size = size < 0 ? static_cast<int64_t>(bytes) / known : size;
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor(memory, data, bytes, shape.data(), shape.size(), type);
}

static void Decode(Ort::Env& env, const Ort::SessionOptions& options, const std::string& folder, int past, int calls) {
  Ort::Session session(env, (folder + "/model.onnx").c_str(), options);
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::IoBinding binding(session);
  std::map<std::string, std::vector<char>> memory;  // where it lies does not move
  int32_t newest = 0, total = 0;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    const Ort::TypeInfo info = session.GetInputTypeInfo(i);
    if (name == "seqlens_k" || name == "total") {
      binding.BindInput(name.c_str(), Tensor(info, name == "total" ? &total : &newest, sizeof(int32_t)));
      continue;
    }
    std::vector<char>& data = memory[name] = Content(folder + "/" + name + ".bin");
    const Ort::Value value = Tensor(info, data.data(), data.size());
    binding.BindInput(name.c_str(), value);
    if (name.rfind("past_", 0) == 0) binding.BindOutput(("present_" + name.substr(5)).c_str(), value);
  }
  std::vector<char>& output = memory["output"] = std::vector<char>(memory.at("query").size());
  binding.BindOutput("output", Tensor(session.GetOutputTypeInfo(0), output.data(), output.size()));
  const Ort::RunOptions once;
  for (int call = 0; call < calls; ++call) {
    newest = past + call;
    total = newest + 1;
    Begin();
    session.Run(once, binding);
    End();
  }
  std::ofstream file(folder + "/output.bin", std::ios::binary);
  file.write(output.data(), static_cast<std::streamsize>(output.size()));
}

static void Layers(const std::string& plan_path, const char* onnxruntime, const char* operators) {
  LoadRuntime(onnxruntime);
  Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "arm64_layers");
  const Ort::SessionOptions options = Options(operators);
  std::ifstream plan(plan_path);
  std::string folder;
  for (int past, calls; plan >> folder >> past >> calls;) {
    try {
      Decode(env, options, folder, past, calls);
    } catch (const std::exception& error) {  // a node that this build does not know, for one
      std::ofstream(folder + "/refusal.txt") << error.what();
    }
  }
  std::ofstream(plan_path + ".maps") << std::ifstream("/proc/self/maps").rdbuf();  // while the operators are loaded
}

int main(int argc, char** argv) {
  KnownIntervals();
  if (argc == 4) Layers(argv[1], argv[2], argv[3]);
  return 0;
}
