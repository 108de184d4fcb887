// ONNX Runtime, loaded while the program runs: nothing is linked against libonnxruntime.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

#define ORT_API_MANUAL_INIT  // the C++ classes call through the pointer that LoadRuntime sets
#include <onnxruntime_cxx_api.h>

/// What the user is told: one sentence with what was found, where, and what to do.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The processor that an ELF file is built for; empty where the file is none.
inline std::string MachineOf(const std::string& path) {
  char head[20] = {};
  std::ifstream(path, std::ios::binary).read(head, sizeof(head));
  if (std::string(head, 4) != "\177ELF") return "";
  const int machine = static_cast<unsigned char>(head[18]) + 256 * static_cast<unsigned char>(head[19]);
  return machine == 62 ? "x86_64" : machine == 183 ? "aarch64" : "machine " + std::to_string(machine);
}

/// Of another processor's library the loader may say that there is no such file.
inline Refusal NotLoaded(const std::string& library, const std::string& said, const std::string& cure) {
  const std::string theirs = MachineOf(library), own = MachineOf("/proc/self/exe");
  if (theirs.empty() || theirs == own) return Refusal(said + ": name " + cure);
  return Refusal(library + " is built for " + theirs + ", and this program for " + own + ": name " + cure);
}

/// Loads ONNX Runtime and returns its version. It is never unloaded: its threads may outlive main.
inline std::string LoadRuntime(const std::string& library) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw NotLoaded(library, dlerror(), "ONNX Runtime's library for this processor with --ort.");
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (base == nullptr) throw Refusal(library + " is not ONNX Runtime: it has no OrtGetApiBase.");
  const std::string version = base()->GetVersionString();
  unsigned major = 0, minor = 0;
  std::sscanf(version.c_str(), "%u.%u", &major, &minor);
  // API 17, the oldest that the operators run in, has every function used here; newer runtimes offer it too.
  const OrtApi* const api = major > 1 || minor >= 17 ? base()->GetApi(17) : nullptr;
  if (api == nullptr) throw Refusal(library + " is ONNX Runtime " + version + ": 1.17 or newer is needed.");
  Ort::InitApi(api);
  return version;
}
