// A causal language model in a session of ONNX Runtime, with key and value caches that it updates in place.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "runtime.h"

struct Settings {
  std::string model;         ///< .onnx or .ort
  std::string ops;           ///< operator library; empty: the model needs none
  int threads = 0;           ///< 0: ONNX Runtime's choice
  int64_t capacity = 0;      ///< tokens to make room for
  bool copy_caches = false;  ///< past and present apart, as function bodies and the standard Attention need it
  bool map_model = true;     ///< an .ort is mapped, and its weights stay where they lie
};

class Decoder {
 public:
  explicit Decoder(Settings settings) : settings_(std::move(settings)) {
    OpenSession();
    const Ort::AllocatedStringPtr config =
        session_.GetModelMetadata().LookupCustomMetadataMapAllocated("deltallm.config", allocator_);
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      AddInput(session_.GetInputNameAllocated(i, allocator_).get(), session_.GetInputTypeInfo(i),
               config == nullptr ? "" : config.get());
    }
  }

  size_t cache_bytes() const { return cache_bytes_; }

  void CheckRoom(int64_t tokens) const {
    if (tokens <= settings_.capacity) return;
    throw Refusal("The caches hold " + std::to_string(settings_.capacity) + " tokens, and " + std::to_string(tokens) +
                  " are to be stored: give a larger --capacity.");
  }

  /// Runs new tokens behind those in the cache; returns the most probable next one, the first of equals.
  int64_t Step(std::vector<int64_t> tokens) {
    const int64_t total = length_ + static_cast<int64_t>(tokens.size());
    CheckRoom(total);
    std::vector<int64_t> mask(total, 1), positions;
    for (int64_t i = length_; i < total; ++i) positions.push_back(i);
    Ort::IoBinding binding(session_);
    for (const std::string& name : integers_) {
      std::vector<int64_t>& data = name == "input_ids" ? tokens : name == "attention_mask" ? mask : positions;
      const int64_t shape[] = {1, static_cast<int64_t>(data.size())};
      binding.BindInput(name.c_str(), Ort::Value::CreateTensor(memory_, data.data(), data.size(), shape, 2));
    }
    binding.BindOutput("logits", memory_);
    for (const Cache& cache : caches_) {
      binding.BindInput(cache.past.c_str(), cache.value);
      const char* const present = cache.present.c_str();  // in place: one buffer under both names
      settings_.copy_caches ? binding.BindOutput(present, memory_) : binding.BindOutput(present, cache.value);
    }
    try {
      session_.Run(Ort::RunOptions{nullptr}, binding);
    } catch (const Ort::Exception& error) {
      if (settings_.copy_caches || !settings_.ops.empty()) throw;
      throw Refusal(settings_.model + " may need --copy-caches 1, past and present apart (" + error.what() + ")");
    }
    std::vector<Ort::Value> outputs = binding.GetOutputValues();
    for (size_t i = 0; settings_.copy_caches && i < caches_.size(); ++i) caches_[i].value = std::move(outputs[i + 1]);
    length_ = total;
    return MostProbable(outputs[0]);
  }

 private:
  struct Cache {
    std::string past, present;  ///< input and output
    Ort::Value value;           ///< [1, KV heads, rows, row size]
  };

  void OpenSession() {
    Ort::SessionOptions options;
    // For small devices: no arena that keeps the prompt's peak, and no thread that burns power while it waits.
    options.DisableCpuMemArena().DisableMemPattern().AddConfigEntry("session.intra_op.allow_spinning", "0");
    if (settings_.threads > 0) options.SetIntraOpNumThreads(settings_.threads);
    for (const char* key : {"session.use_memory_mapped_ort_model", "session.use_ort_model_bytes_for_initializers"})
      options.AddConfigEntry(key, settings_.map_model ? "1" : "0");
    try {
      if (!settings_.ops.empty()) options.RegisterCustomOpsLibrary(settings_.ops.c_str());
    } catch (const Ort::Exception& error) {
      throw NotLoaded(settings_.ops, error.what(), "the operator library built for this processor with --ops.");
    }
    if (access(settings_.model.c_str(), R_OK) != 0) throw Refusal(settings_.model + " is no readable file.");
    try {
      session_ = Ort::Session(env_, settings_.model.c_str(), options);
    } catch (const Ort::Exception& error) {
      const bool unknown = settings_.ops.empty() && std::string(error.what()).find("Delta") != std::string::npos;
      throw Refusal(settings_.model +
                    (unknown ? " needs the operator library, libdeltallm_ops.so: name it with --ops, and "
                               "RegisterCustomOpsLibrary_V2 registers it"
                             : " cannot be opened: give a whole .ort, or .onnx with its data, to a recent runtime") +
                    " (ONNX Runtime: " + error.what() + ")");
    }
  }

  void AddInput(const std::string& name, const Ort::TypeInfo& info, const std::string& config) {
    if (info.GetONNXType() != ONNX_TYPE_TENSOR) throw Refusal("The input " + name + " is no tensor: convert again.");
    const Ort::ConstTensorTypeAndShapeInfo tensor = info.GetTensorTypeAndShapeInfo();
    const ONNXTensorElementDataType type = tensor.GetElementType();
    std::vector<int64_t> shape = tensor.GetShape();
    const int64_t element = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT     ? 4
                            : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2
                            : type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8   ? 1
                                                                            : 0;
    const bool integer = name == "input_ids" || name == "attention_mask" || name == "position_ids";
    const bool cache = name.rfind("past_key_values.", 0) == 0 && shape.size() == 4 && shape[1] > 0 && shape[3] > 0;
    if (integer && type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return integers_.push_back(name);
    if (!cache || element == 0) {
      throw Refusal("The input " + name + " of " + settings_.model + " is not int64 input_ids, attention_mask or " +
                    "position_ids, nor a cache past_key_values.N.key/value: convert the model again.");
    }
    if (element == 1 && config.empty())
      throw Refusal(settings_.model + " has packed caches but no deltallm.config in its metadata: convert it again.");
    const int64_t needed = RowsNeeded(config, shape[3]);
    if (shape[2] > 0 && shape[2] < needed) {
      throw Refusal(settings_.model + " fixes its caches at " + std::to_string(shape[2]) + " rows, and " +
                    std::to_string(settings_.capacity) + " tokens need " + std::to_string(needed) + ": run fewer.");
    }
    shape[0] = 1;
    shape[2] = settings_.copy_caches ? 0 : shape[2] > 0 ? shape[2] : (needed + 15) / 16 * 16;
    const double bytes = static_cast<double>(shape[1]) * shape[2] * shape[3] * element;
    // Lives as long as the process; memory that was never written takes no room.
    void* const data = bytes < 1e15 ? std::calloc(static_cast<size_t>(bytes) + 1, 1) : nullptr;
    if (data == nullptr) throw Refusal("There is no memory for the caches: give a smaller --capacity.");
    cache_bytes_ += static_cast<size_t>(bytes);
    caches_.push_back({name, "present" + name.substr(15),
                       Ort::Value::CreateTensor(memory_, data, static_cast<size_t>(bytes), shape.data(), 4, type)});
  }

  /// docs/cache-format.md, "Rows needed". Formats other than int4 have a row per token.
  int64_t RowsNeeded(const std::string& config, int64_t row_size) const {
    const int64_t tokens = settings_.capacity;
    if (config.find("\"int4\"") == std::string::npos) return tokens;
    const int64_t exact = Number(config, "sinks") + Number(config, "window"), area = (exact + 145) / 16 * 16;
    int64_t channels = 4;
    while (std::max(channels / 2 + 4, (17 * channels + 31) / 32 + 2) < row_size) channels += 4;
    const int64_t blocks = std::max<int64_t>(tokens - exact - 1, 0) / 128;
    const int64_t rows = blocks == 0 ? std::min(tokens, area) : area;
    return (rows * (channels + 4) + 128 * row_size * blocks + row_size - 1) / row_size;
  }

  static int64_t Number(const std::string& json, const std::string& key) {
    const size_t at = json.find('"' + key + "\":");
    if (at == std::string::npos) throw Refusal("The model's deltallm.config lacks " + key + ": convert it again.");
    return std::clamp<int64_t>(std::atoll(json.c_str() + at + key.size() + 3), 0, 1'000'000'000);
  }

  static int64_t MostProbable(const Ort::Value& logits) {
    const Ort::TensorTypeAndShapeInfo info = logits.GetTensorTypeAndShapeInfo();
    const std::vector<int64_t> shape = info.GetShape();
    const bool whole = shape.size() == 3 && shape[1] > 0 && shape[2] > 0;
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || !whole) {
      throw Refusal("The logits are not float32 [B, S, V]: convert the model again.");
    }
    const float* const last = logits.GetTensorData<float>() + (shape[1] - 1) * shape[2];
    return std::max_element(last, last + shape[2]) - last;
  }

  Settings settings_;
  Ort::Env env_{ORT_LOGGING_LEVEL_FATAL, "deltallm_run"};
  Ort::AllocatorWithDefaultOptions allocator_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  Ort::Session session_{nullptr};
  std::vector<std::string> integers_;
  std::vector<Cache> caches_;
  size_t cache_bytes_ = 0;
  int64_t length_ = 0;
};
