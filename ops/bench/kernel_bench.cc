// One decode step over a cache of each format, with the kernels alone: nanoseconds of one thread per past token (all KV
// heads of one layer), split by kernel, from memory: every step reads another layer of a ring larger than the caches.
//
//   deltallm_kernel_bench [--isa NAME] [--head-size 64] [--group 4] [--kv-heads 8] [--contexts 1024,4096,16384]
//                         [--formats int8,int4,float16,float32] [--seconds 0.3] [--ring-mib 320]
//
// A ring of 1 MiB shows the kernels without the memory.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "bench/roofline.h"
#include "core/refusal.h"
#include "core/select_kernels.h"
#include "kernels/half.h"
#include "kernels/packed_kernels.h"

namespace deltallm::bench {
namespace {

// Rows per block of scores, as packed caches are read in core/; float caches are read in longer ones there.
constexpr int64_t kChunk = 512;

struct Geometry {
  int64_t kv_heads = 8;
  int64_t group = 4;
  int64_t head_size = 64;
};

enum Phase : int { kScores = 1, kSoftmax = 2, kValues = 4, kWhole = 7 };

/// One format's slabs of keys and values and the two kernels that read them.
class Format {
 public:
  Format(const Kernels& kernels, const Geometry& geometry) : kernels(kernels), geometry(geometry) {}
  virtual ~Format() = default;
  virtual int64_t RowsBytes(bool keys) const = 0;                               ///< bytes of kBlockRows rows
  virtual void Fill(uint8_t* rows, bool keys, std::mt19937& random) const = 0;  ///< kBlockRows rows
  virtual void Begin(const float* query) { query_ = query; }
  virtual void Scores(const uint8_t* keys, int64_t rows, float* scores) const = 0;
  virtual void Values(const float* weights, const uint8_t* values, int64_t rows, float* sum) const = 0;

  const Kernels& kernels;
  const Geometry& geometry;

 protected:
  const float* query_ = nullptr;
};

template <typename T>
class FloatFormat : public Format {
 public:
  using Format::Format;
  int64_t RowsBytes(bool) const override { return kBlockRows * geometry.head_size * static_cast<int64_t>(sizeof(T)); }
  void Fill(uint8_t* rows, bool, std::mt19937& random) const override {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kBlockRows * geometry.head_size; ++i) {
      const float x = normal(random);
      if constexpr (sizeof(T) == 2) {
        reinterpret_cast<T*>(rows)[i] = FloatToHalf(x);
      } else {
        reinterpret_cast<T*>(rows)[i] = x;
      }
    }
  }
  void Scores(const uint8_t* keys, int64_t rows, float* scores) const override {
    const RowsOf<T> key{reinterpret_cast<const T*>(keys), geometry.head_size};
    if constexpr (sizeof(T) == 2) {
      kernels.score_rows_f16(query_, geometry.head_size, geometry.group, key, rows, geometry.head_size, scores, kChunk);
    } else {
      kernels.score_rows_f32(query_, geometry.head_size, geometry.group, key, rows, geometry.head_size, scores, kChunk);
    }
  }
  void Values(const float* weights, const uint8_t* values, int64_t rows, float* sum) const override {
    const RowsOf<T> value{reinterpret_cast<const T*>(values), geometry.head_size};
    if constexpr (sizeof(T) == 2) {
      kernels.add_rows_f16(weights, kChunk, geometry.group, value, rows, geometry.head_size, sum, geometry.head_size);
    } else {
      kernels.add_rows_f32(weights, kChunk, geometry.group, value, rows, geometry.head_size, sum, geometry.head_size);
    }
  }
};

void RandomBytes(uint8_t* bytes, int64_t count, std::mt19937& random) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(random());
}

void FillHalves(uint8_t* halves, int64_t count, float value) {
  const uint16_t half = FloatToHalf(value);
  for (int64_t i = 0; i < count; ++i) std::memcpy(halves + 2 * i, &half, sizeof half);
}

/// How far ahead of what it reads a packed kernel asks the memory for bytes.
constexpr int64_t kAheadBytes = 16384;

class Int8Format : public Format {
 public:
  Int8Format(const Kernels& kernels, const Geometry& geometry)
      : Format(kernels, geometry),
        padded_((geometry.head_size + 3) / 4 * 4),
        stride_((geometry.head_size + 63) / 64 * 64),
        integers_(static_cast<size_t>(4 * geometry.group * stride_)),
        steps_(static_cast<size_t>(geometry.group)),
        sums_(static_cast<size_t>(geometry.group)) {
    const int64_t size = geometry.group * stride_;
    int8_t* planes = integers_.data();
    quantized_ = {
        reinterpret_cast<int16_t*>(planes), planes + 2 * size, planes + 3 * size, steps_.data(), sums_.data(), stride_};
  }
  int64_t RowsBytes(bool) const override { return kBlockRows * (padded_ + 4); }
  void Fill(uint8_t* rows, bool, std::mt19937& random) const override {
    for (int64_t t = 0; t < kBlockRows / kTileRows; ++t) {
      uint8_t* tile = rows + t * kTileRows * (padded_ + 4);
      RandomBytes(tile, kTileRows * padded_, random);
      FillHalves(tile + kTileRows * padded_, kTileRows, 0.01f);
    }
  }
  void Begin(const float* query) override {
    kernels.packed->quantize_query(query, geometry.head_size, geometry.group, geometry.head_size, quantized_);
  }
  void Scores(const uint8_t* keys, int64_t rows, float* scores) const override {
    kernels.packed->score_tiles(quantized_, geometry.group, keys, rows / kTileRows, geometry.head_size, scores, kChunk,
                                {keys + kAheadBytes, rows * (padded_ + 4)});
  }
  void Values(const float* weights, const uint8_t* values, int64_t rows, float* sum) const override {
    for (int64_t j = 0; j < rows; j += kBlockRows) {
      kernels.packed->add_tiles(weights + j, kChunk, geometry.group, values + j * (padded_ + 4), kBlockRows / kTileRows,
                                geometry.head_size, sum, geometry.head_size,
                                {values + j * (padded_ + 4) + kAheadBytes, kBlockRows * (padded_ + 4)});
    }
  }

 private:
  int64_t padded_;
  int64_t stride_;
  std::vector<int8_t> integers_;
  std::vector<float> steps_;
  std::vector<int32_t> sums_;
  QuantizedQuery quantized_{};
};

class Int4Format : public Format {
 public:
  Int4Format(const Kernels& kernels, const Geometry& geometry)
      : Format(kernels, geometry), padded_((geometry.head_size + 3) / 4 * 4) {}
  int64_t RowsBytes(bool) const override {
    return kBlockRows * std::max(padded_ / 2 + 4, (17 * padded_ + 31) / 32 + 2);
  }
  void Fill(uint8_t* rows, bool keys, std::mt19937& random) const override {
    RandomBytes(rows, kBlockRows / 2 * padded_, random);
    const int64_t groups = keys ? padded_ : kBlockRows;
    FillHalves(rows + kBlockRows / 2 * padded_, groups, 0.2f);
    FillHalves(rows + kBlockRows / 2 * padded_ + 2 * groups, groups, -1.5f);
  }
  void Scores(const uint8_t* keys, int64_t rows, float* scores) const override {
    for (int64_t j = 0; j < rows; j += kBlockRows) {
      const uint8_t* block = keys + j / kBlockRows * RowsBytes(true);
      kernels.packed->score_block(query_, geometry.head_size, geometry.group, block, geometry.head_size, scores + j,
                                  kChunk, {block + kAheadBytes, RowsBytes(true)});
    }
  }
  void Values(const float* weights, const uint8_t* values, int64_t rows, float* sum) const override {
    for (int64_t j = 0; j < rows; j += kBlockRows) {
      const uint8_t* block = values + j / kBlockRows * RowsBytes(false);
      kernels.packed->add_block(weights + j, kChunk, geometry.group, block, geometry.head_size, sum, geometry.head_size,
                                {block + kAheadBytes, RowsBytes(false)});
    }
  }

 private:
  int64_t padded_;
};

std::unique_ptr<Format> MakeFormat(const std::string& name, const Kernels& kernels, const Geometry& geometry) {
  if (name == "float32") return std::make_unique<FloatFormat<float>>(kernels, geometry);
  if (name == "float16") return std::make_unique<FloatFormat<uint16_t>>(kernels, geometry);
  if (name == "int8") return std::make_unique<Int8Format>(kernels, geometry);
  if (name == "int4") return std::make_unique<Int4Format>(kernels, geometry);
  Refuse("--formats names '", name, "': give float32, float16, int8 or int4.");
}

/// Layers of [kv_heads][context] rows of keys and of values, one after the other.
class Ring {
 public:
  Ring(const Format& format, int64_t context, int64_t bytes)
      : head_bytes_(context / kBlockRows * format.RowsBytes(true)) {
    const int64_t layer = 2 * format.geometry.kv_heads * head_bytes_;
    layers_ = std::max<int64_t>(1, bytes / layer);
    kv_heads_ = format.geometry.kv_heads;
    memory_ = HugeMemory(layers_ * layer);
    std::mt19937 random(1);
    std::vector<uint8_t> keys(static_cast<size_t>(format.RowsBytes(true)));
    std::vector<uint8_t> values(static_cast<size_t>(format.RowsBytes(false)));
    format.Fill(keys.data(), true, random);
    format.Fill(values.data(), false, random);
    for (int64_t i = 0; i < layers_ * 2 * kv_heads_; ++i) {
      const std::vector<uint8_t>& rows = i / kv_heads_ % 2 == 0 ? keys : values;
      uint8_t* head = memory_.data() + i * head_bytes_;
      for (int64_t at = 0; at < head_bytes_; at += static_cast<int64_t>(rows.size())) {
        std::memcpy(head + at, rows.data(), rows.size());
      }
    }
  }
  int64_t layers() const { return layers_; }
  const uint8_t* Keys(int64_t layer, int64_t head) const { return At(2 * layer, head); }
  const uint8_t* Values(int64_t layer, int64_t head) const { return At(2 * layer + 1, head); }

 private:
  uint8_t* At(int64_t half, int64_t head) const { return memory_.data() + (half * kv_heads_ + head) * head_bytes_; }

  int64_t head_bytes_;
  int64_t layers_;
  int64_t kv_heads_;
  HugeMemory memory_;
};

/// One layer's decode step, or only some of its kernels.
class Step {
 public:
  Step(Format& format, int64_t context)
      : format_(format),
        context_(context),
        query_(static_cast<size_t>(format.geometry.group * format.geometry.head_size)),
        weights_(static_cast<size_t>(format.geometry.group * kChunk)),
        sum_(query_.size()) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    for (float& x : query_) x = normal(random);
  }

  void Run(const Ring& ring, int64_t layer, int phases) {
    const Geometry& geometry = format_.geometry;
    for (int64_t head = 0; head < geometry.kv_heads; ++head) {
      format_.Begin(query_.data());
      std::vector<float> top(static_cast<size_t>(geometry.group), -std::numeric_limits<float>::infinity());
      const uint8_t* keys = ring.Keys(layer, head);
      const uint8_t* values = ring.Values(layer, head);
      for (int64_t j = 0; j < context_; j += kChunk) {
        const int64_t rows = std::min(kChunk, context_ - j);
        const int64_t offset = j / kBlockRows * format_.RowsBytes(true);
        if (phases & kScores) format_.Scores(keys + offset, rows, weights_.data());
        if (phases & kSoftmax) Softmax(rows, top.data());
        if (phases & kValues) format_.Values(weights_.data(), values + offset, rows, sum_.data());
      }
    }
  }

 private:
  void Softmax(int64_t rows, float* top) {
    const Geometry& geometry = format_.geometry;
    for (int64_t g = 0; g < geometry.group; ++g) {
      float* row = weights_.data() + g * kChunk;
      const float largest = std::max(top[g], format_.kernels.maximum(row, rows));
      if (largest > top[g]) {
        format_.kernels.scale(sum_.data() + g * geometry.head_size, geometry.head_size, std::exp2(top[g] - largest));
        top[g] = largest;
      }
      denominator_ += format_.kernels.exp2_and_sum(row, rows, largest);
    }
  }

  Format& format_;
  int64_t context_;
  std::vector<float> query_;
  std::vector<float> weights_;
  std::vector<float> sum_;
  float denominator_ = 0.0f;
};

/// Median nanoseconds per token of steps that go round the ring.
double Measure(Step& step, const Ring& ring, int64_t context, int phases, double seconds) {
  std::vector<double> times;
  double spent = 0.0;
  for (int64_t i = 0; spent < seconds * 1e9 || i < ring.layers(); ++i) {
    const double begin = ThreadNanoseconds();
    step.Run(ring, i % ring.layers(), phases);
    times.push_back(ThreadNanoseconds() - begin);
    spent += times.back();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] / static_cast<double>(context);
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream text(list);
  for (std::string part; std::getline(text, part, ',');) parts.push_back(part);
  return parts;
}

int64_t Number(const std::string& text, int64_t multiple) {
  char* end = nullptr;
  const int64_t number = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || number < 1 || number > 1 << 20 || number % multiple != 0) {
    Refuse("The number '", text, "' is not a multiple of ", multiple, " from ", multiple, " to 1048576.");
  }
  return number;
}

void Main(int argc, char** argv) {
  Geometry geometry;
  std::string isa;
  std::string contexts = "1024,4096,16384";
  std::string formats = "int8,int4,float16,float32";
  double seconds = 0.3;
  int64_t ring_mib = 320;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) Refuse("Option ", name, " has no value.");
    const std::string value = argv[i + 1];
    if (name == "--isa") {
      isa = value;
    } else if (name == "--head-size") {
      geometry.head_size = Number(value, 4);
    } else if (name == "--group") {
      geometry.group = Number(value, 1);
    } else if (name == "--kv-heads") {
      geometry.kv_heads = Number(value, 1);
    } else if (name == "--contexts") {
      contexts = value;
    } else if (name == "--formats") {
      formats = value;
    } else if (name == "--ring-mib") {
      ring_mib = Number(value, 1);
    } else if (name == "--seconds") {
      seconds = std::strtod(value.c_str(), nullptr);
    } else {
      Refuse("There is no option ", name, ".");
    }
  }
  const Kernels& kernels = SelectKernels(isa.c_str());
  std::printf("%s (packed: %s), %lld KV heads x %lld, head size %lld\n", kernels.isa, kernels.packed->isa,
              static_cast<long long>(geometry.kv_heads), static_cast<long long>(geometry.group),
              static_cast<long long>(geometry.head_size));
  const double bandwidth = StreamingBandwidth();
  const double peak = VnniPeak();
  std::printf("streaming read %.1f GB/s, vpdpbusd %.0f Gop/s\n", bandwidth, peak);
  std::printf("%-8s %8s %8s %8s %8s %8s %8s\n", "format", "context", "scores", "softmax", "values", "step", "floor");
  for (const std::string& name : Split(formats)) {
    const std::unique_ptr<Format> format = MakeFormat(name, kernels, geometry);
    const double bytes = 2.0 * static_cast<double>(geometry.kv_heads * format->RowsBytes(true)) / kBlockRows;
    for (const std::string& text : Split(contexts)) {
      const int64_t context = Number(text, kBlockRows);
      const Ring ring(*format, context, ring_mib << 20);
      Step step(*format, context);
      Measure(step, ring, context, kWhole, seconds / 4);
      double times[4];
      const int phases[4] = {kScores, kSoftmax, kValues, kWhole};
      for (int i = 0; i < 4; ++i) times[i] = Measure(step, ring, context, phases[i], seconds);
      std::printf("%-8s %8lld %8.1f %8.1f %8.1f %8.1f %8.1f\n", name.c_str(), static_cast<long long>(context), times[0],
                  times[1], times[2], times[3], bytes / bandwidth);
    }
  }
}

}  // namespace
}  // namespace deltallm::bench

int main(int argc, char** argv) {
  try {
    deltallm::bench::Main(argc, argv);
  } catch (const deltallm::Refusal& refusal) {
    std::fprintf(stderr, "%s\n", refusal.what());
    return 2;
  }
  return 0;
}
