#include "tests/packed_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "tests/harness.h"

namespace deltallm::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

size_t At(int64_t index) { return static_cast<size_t>(index); }

int Code(float x, float least, float most) {
  if (!(x >= least)) return static_cast<int>(least);
  return static_cast<int>(std::min(most, std::nearbyint(x)));
}

uint16_t Halves(const uint8_t* bytes, int64_t offset) {
  return static_cast<uint16_t>(bytes[offset] + 256 * bytes[offset + 1]);
}

ModelBlock Sealed(const std::vector<ModelRow>& rows, bool by_row) {
  std::vector<std::vector<float>> x;
  ModelBlock block;
  block.by_row = by_row;
  for (size_t r = 0; r < 128; ++r) {
    x.push_back(rows[r].Decoded());
    block.tags.push_back(rows[r].tag);
  }
  const size_t size = x[0].size();
  block.codes.assign(128, std::vector<int>(size, 0));
  for (size_t group = 0; group < (by_row ? 128 : size); ++group) {
    const size_t members = by_row ? size : 128;
    const auto at = [&](size_t i) { return by_row ? x[group][i] : x[i][group]; };
    float least = at(0), most = at(0);
    bool finite = true;
    for (size_t i = 0; i < members; ++i) {
      finite = finite && std::isfinite(at(i));
      least = std::min(least, at(i));
      most = std::max(most, at(i));
    }
    uint16_t zero = FloatToHalf(least);
    uint16_t scale = FloatToHalf((most - HalfToFloat(zero)) / 15.0f);
    if (!finite || !std::isfinite(HalfToFloat(zero)) || !std::isfinite(HalfToFloat(scale))) {
      zero = 0x7e00;
      scale = 0;
    }
    block.zero.push_back(zero);
    block.scale.push_back(scale);
    for (size_t i = 0; i < members && HalfToFloat(scale) != 0.0f; ++i) {
      int& code = by_row ? block.codes[group][i] : block.codes[i][group];
      code = Code((at(i) - HalfToFloat(zero)) / HalfToFloat(scale), 0.0f, 15.0f);
    }
  }
  return block;
}

}  // namespace

std::vector<float> ModelRow::Decoded() const {
  std::vector<float> x;
  for (const int code : codes) x.push_back(static_cast<float>(code) * HalfToFloat(scale));
  return x;
}

ModelRow RoundedRow(const float* x, int64_t head_size) {
  ModelRow row;
  row.codes.assign(At(head_size), 0);
  float largest = 0.0f;
  for (int64_t c = 0; c < head_size; ++c) {
    if (!std::isfinite(x[c])) largest = kNaN;
    if (std::isfinite(largest)) largest = std::max(largest, std::fabs(x[c]));
  }
  row.scale = FloatToHalf(largest / 127.0f);
  if (HalfToFloat(row.scale) < largest / 127.5f) ++row.scale;
  if (!std::isfinite(HalfToFloat(row.scale))) {
    row.scale = 0x7e00;
    return row;
  }
  if (row.scale == 0) return row;
  for (int64_t c = 0; c < head_size; ++c) row.codes[At(c)] = Code(x[c] / HalfToFloat(row.scale), -127.0f, 127.0f);
  return row;
}

std::vector<float> ModelBlock::DecodedRow(size_t row) const {
  std::vector<float> x;
  for (size_t c = 0; c < codes[row].size(); ++c) {
    const size_t group = by_row ? row : c;
    x.push_back(HalfToFloat(zero[group]) + static_cast<float>(codes[row][c]) * HalfToFloat(scale[group]));
  }
  return x;
}

PackedModel::PackedModel(const DeltaAttentionAttributes& attributes, int64_t head_size, const float* threshold,
                         bool per_channel, const float* row_weight, bool runs_merge)
    : attributes_(attributes), size_(head_size), runs_merge_(runs_merge) {
  for (int64_t c = 0; c < head_size; ++c) {
    threshold_.push_back(threshold[per_channel ? c : 0]);
    row_weight_.push_back(row_weight == nullptr ? 1.0f : row_weight[c]);
  }
}

void PackedModel::Append(const float* key, const float* value) {
  keys_.push_back(RoundedRow(key, size_));
  values_.push_back(RoundedRow(value, size_));
  keys_.back().tag = attributes_.hold.row_granularity ? 1 : 0;
  ++tokens_;
  const int64_t leaving = tokens_ - 1 - attributes_.attention.delta_window;
  if (leaving >= attributes_.attention.sinks) Code(leaving, keys_[At(leaving)], values_[At(leaving)]);
}

void PackedModel::Code(int64_t token, const ModelRow& key, const ModelRow& value) {
  const HoldRules& rules = attributes_.hold;
  const int64_t sinks = attributes_.attention.sinks;
  ++coded_;
  const bool restarts =
      token == 0 || (coded_rows_ == 0 && sinks == 0) || (rules.refresh > 0 && token % rules.refresh == 0);
  if (restarts) {
    AppendCoded(key, value, rules.row_granularity ? 1 : 0);
    return;
  }
  const ModelRow& reference = coded_rows_ > 0 ? coded_keys_.back() : keys_[At(sinks - 1)];
  const std::vector<float> before = reference.Decoded();
  std::vector<float> now = key.Decoded();
  if (!rules.row_granularity) {
    int held = 0;
    for (size_t c = 0; c < now.size(); ++c) {
      if (!(std::fabs(now[c] - before[c]) <= threshold_[c])) continue;
      now[c] = before[c];
      ++held;
    }
    held_ += held;
    AppendCoded(RoundedRow(now.data(), size_), value, held);
    return;
  }
  double change = 0.0, norm = 0.0;
  for (size_t c = 0; c < now.size(); ++c) {
    change += std::pow(row_weight_[c] * (double{now[c]} - before[c]), 2);
    norm += std::pow(row_weight_[c] * double{now[c]}, 2);
  }
  const double rho = rules.row_rule == RowRule::kRelative ? std::sqrt(norm) : 1.0;
  if (!(std::sqrt(change) <= threshold_[0] * rho)) {
    AppendCoded(key, value, 1);
    return;
  }
  ++held_;
  const int tokens_of_run = reference.tag & 0x7fff;
  if (!runs_merge_ || coded_rows_ == 0 || tokens_of_run == 32767) {
    AppendCoded(reference, value, 0x8001);
    return;
  }
  std::vector<float> mean = coded_values_.back().Decoded();
  if (tokens_of_run > 1) {
    const std::vector<float> rest = residual_.Decoded();
    for (size_t c = 0; c < mean.size(); ++c) mean[c] += rest[c];
  }
  const std::vector<float> v = value.Decoded();
  for (size_t c = 0; c < mean.size(); ++c) mean[c] = mean[c] + (v[c] - mean[c]) / static_cast<float>(tokens_of_run + 1);
  coded_values_.back() = RoundedRow(mean.data(), size_);
  const std::vector<float> kept = coded_values_.back().Decoded();
  for (size_t c = 0; c < mean.size(); ++c) mean[c] -= kept[c];
  residual_ = RoundedRow(mean.data(), size_);
  has_residual_ = true;
  ++coded_keys_.back().tag;
}

void PackedModel::AppendCoded(ModelRow key, const ModelRow& value, int tag) {
  key.tag = tag;
  coded_keys_.push_back(key);
  coded_values_.push_back(value);
  has_residual_ = false;
  ++coded_rows_;
  if (attributes_.cache_format != CacheFormat::kInt4 || coded_keys_.size() < 129) return;
  key_blocks_.push_back(Sealed(coded_keys_, false));
  value_blocks_.push_back(Sealed(coded_values_, true));
  coded_keys_.erase(coded_keys_.begin(), coded_keys_.begin() + 128);
  coded_values_.erase(coded_values_.begin(), coded_values_.begin() + 128);
}

int64_t PackedModel::Slot(int64_t token) const {
  const int64_t sinks = attributes_.attention.sinks;
  return token < sinks ? token : sinks + (token - sinks) % attributes_.attention.delta_window;
}

int64_t PackedModel::BytesPerToken() const {
  const int64_t channels = RowBytes() - 4;
  if (attributes_.cache_format == CacheFormat::kInt8) return RowBytes();
  return std::max<int64_t>(channels / 2 + 4, static_cast<int64_t>(std::ceil(17.0 * channels / 32.0)) + 2);
}

int64_t PackedModel::RowArea(int64_t capacity) const {
  if (attributes_.cache_format == CacheFormat::kInt8) return capacity;
  const int64_t exact = attributes_.attention.sinks + attributes_.attention.delta_window;
  return std::min((exact + 130 + 15) / 16 * 16, capacity * BytesPerToken() / RowBytes());
}

int64_t PackedModel::bytes() const {
  const int64_t exact = tokens_ - coded_;
  const int64_t rows = exact + static_cast<int64_t>(coded_keys_.size());
  return 2 * (rows * RowBytes() + static_cast<int64_t>(key_blocks_.size()) * 128 * BytesPerToken());
}

std::vector<ModelEntry> PackedModel::Entries() const {
  std::vector<ModelEntry> entries;
  const int64_t sinks = attributes_.attention.sinks;
  const auto add_exact = [&](int64_t token) {
    entries.push_back({keys_[At(token)].Decoded(), values_[At(token)].Decoded(), 1, token, false});
  };
  const auto run_of = [&](int tag) { return attributes_.hold.row_granularity ? tag & 0x7fff : 1; };
  for (int64_t t = 0; t < std::min(tokens_, sinks); ++t) add_exact(t);
  int64_t row = 0;
  for (size_t b = 0; b < key_blocks_.size(); ++b) {
    for (size_t r = 0; r < 128; ++r, ++row) {
      entries.push_back({key_blocks_[b].DecodedRow(r), value_blocks_[b].DecodedRow(r), run_of(key_blocks_[b].tags[r]),
                         runs_merge_ ? -1 : sinks + row, true});
    }
  }
  for (size_t r = 0; r < coded_keys_.size(); ++r, ++row) {
    entries.push_back({coded_keys_[r].Decoded(), coded_values_[r].Decoded(), run_of(coded_keys_[r].tag),
                       runs_merge_ ? -1 : sinks + row, true});
  }
  for (int64_t t = sinks + coded_; t < tokens_; ++t) add_exact(t);
  return entries;
}

std::string PackedModel::Compare(const uint8_t* key_slab, const uint8_t* value_slab, int64_t capacity) const {
  const int64_t channels = RowBytes() - 4;
  const int64_t sinks = attributes_.attention.sinks;
  const int64_t window = attributes_.attention.delta_window;
  const int64_t area = RowArea(capacity);
  std::string found;
  const auto expect = [&](int64_t is, int64_t should, const auto&... what) {
    if (is != should && found.empty()) found = Text(what..., " is ", is, ", should be ", should);
  };
  const auto row = [&](bool is_key, int64_t slot, const ModelRow& expected, int64_t tag, const char* name) {
    const uint8_t* slab = is_key ? key_slab : value_slab;
    const char* kind = is_key ? " key in slot " : " value in slot ";
    const int64_t tile = slot / 16, r = slot % 16;
    const bool in_tile = 16 * (tile + 1) <= area;
    const int64_t base = in_tile ? tile * 16 * RowBytes() : slot * RowBytes();
    for (int64_t c = 0; c < channels; ++c) {
      int64_t offset = c;
      if (in_tile) offset = is_key ? (c / 4 * 16 + r) * 4 + c % 4 : (r / 4 * channels + c) * 4 + r % 4;
      const uint8_t byte = slab[base + offset];
      const int code = is_key ? byte - 128 : static_cast<int8_t>(byte);
      expect(code, c < size_ ? expected.codes[At(c)] : 0, name, kind, slot, " code ", c);
    }
    const int64_t scale = in_tile ? base + 16 * channels + 2 * r : base + channels;
    const int64_t tag_at = in_tile ? scale + 32 : scale + 2;
    expect(Halves(slab, scale), expected.scale, name, kind, slot, " scale");
    if (tag >= 0) expect(Halves(slab, tag_at), tag, name, kind, slot, " tag");
  };
  const int64_t version = attributes_.cache_format == CacheFormat::kInt8 ? 0xD801 : 0xD401;
  const std::vector<int64_t> header{
      version, coded_ % 65536, coded_ / 65536, coded_rows_ % 65536, coded_rows_ / 65536, (sinks + 31 * window) % 65536};
  const auto exact = [&](int64_t token) {
    const int64_t slot = Slot(token);
    row(true, slot, keys_[At(token)], keys_[At(token)].tag, "exact");
    row(false, slot, values_[At(token)], slot < 6 ? header[At(slot)] : 0, "exact");
  };
  for (int64_t t = 0; t < std::min(tokens_, sinks); ++t) exact(t);
  for (int64_t t = sinks + coded_; t < tokens_; ++t) exact(t);
  for (size_t r = 0; r < coded_keys_.size(); ++r) {
    const int64_t slot = sinks + window + static_cast<int64_t>(r);
    row(true, slot, coded_keys_[r], coded_keys_[r].tag, "coded");
    row(false, slot, coded_values_[r], 0, "coded");
  }
  if (has_residual_) row(false, sinks + window + static_cast<int64_t>(coded_keys_.size()), residual_, 0, "residual");
  for (size_t b = 0; b < key_blocks_.size(); ++b) {
    const int64_t begin = area * RowBytes() + static_cast<int64_t>(b) * 128 * BytesPerToken();
    const uint8_t* key = key_slab + begin;
    const uint8_t* value = value_slab + begin;
    const char* what = "block";
    for (int64_t j = 0; j < 128; ++j) {
      for (int64_t c = 0; c < channels; ++c) {
        const uint8_t k = key[((j / 32 * (channels / 4) + c / 4) * 16 + j % 16) * 4 + c % 4];
        const uint8_t v = value[(j / 8 * channels + c) * 4 + j % 4];
        const bool pad = c >= size_;
        expect(j % 32 < 16 ? k & 15 : k >> 4, pad ? 0 : key_blocks_[b].codes[At(j)][At(c)], what, b, " key ", j, ",",
               c);
        expect(j % 8 < 4 ? v & 15 : v >> 4, pad ? 0 : value_blocks_[b].codes[At(j)][At(c)], what, b, " value ", j, ",",
               c);
      }
      expect(Halves(key, 64 * channels + 4 * channels + 2 * j), key_blocks_[b].tags[At(j)], what, b, " tag");
      expect(Halves(value, 64 * channels + 2 * j), value_blocks_[b].scale[At(j)], what, b, " value scale");
      expect(Halves(value, 64 * channels + 256 + 2 * j), value_blocks_[b].zero[At(j)], what, b, " value zero");
    }
    for (int64_t c = 0; c < channels; ++c) {
      expect(Halves(key, 64 * channels + 2 * c), c < size_ ? key_blocks_[b].scale[At(c)] : 0, what, b, " key scale");
      expect(Halves(key, 66 * channels + 2 * c), c < size_ ? key_blocks_[b].zero[At(c)] : 0, what, b, " key zero");
    }
    for (int64_t i = 68 * channels + 256; i < 128 * BytesPerToken(); ++i) expect(key[i], 0, what, b, " key pad");
    for (int64_t i = 64 * channels + 512; i < 128 * BytesPerToken(); ++i) expect(value[i], 0, what, b, " value pad");
  }
  return found;
}

}  // namespace deltallm::test
