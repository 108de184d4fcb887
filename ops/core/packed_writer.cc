#include "core/packed_writer.h"

#include <algorithm>

#include "cache/packed_header.h"

namespace deltallm {
namespace {

constexpr uint16_t kRepeats = 0x8000;
constexpr int32_t kMostTokens = 32767;

void CopyRow(const PackedRow& from, int64_t channels, PackedRow* to) {
  std::memcpy(to->codes, from.codes, static_cast<size_t>(channels));
  to->scale = from.scale;
}

}  // namespace

void PackedWriter::Append(int64_t first, int64_t last, const float* keys, const float* values, int64_t stride) {
  const auto key = [&](int64_t token) { return keys + (token - first) * stride; };
  const auto value = [&](int64_t token) { return values + (token - first) * stride; };
  for (int64_t token = first; token < std::min(last, layout_.sinks); ++token) {
    WriteExact(token, key(token), value(token));
  }
  // Tokens that leave the window in this call are coded straight from where they are, before the newest ones take the
  // slots of the older ones.
  PackedRow key_row;
  PackedRow value_row;
  for (int64_t token = layout_.sinks + state_.coded_tokens; token < last - layout_.window; ++token) {
    if (token < first) {
      ReadKeyRow(layout_, slabs_.key, WindowSlot(token), &key_row);
      ReadValueRow(coding_, layout_, slabs_.value, WindowSlot(token), &value_row);
    } else {
      coding_.round_row(key(token), layout_.head_size, &key_row);
      coding_.round_row(value(token), layout_.head_size, &value_row);
    }
    Code(token, key_row, value_row);
  }
  for (int64_t token = std::max({first, layout_.sinks, last - layout_.window}); token < last; ++token) {
    WriteExact(WindowSlot(token), key(token), value(token));
  }
}

void PackedWriter::Finish() {
  if (run_open_) {
    const int64_t slot = LastSlot();
    WriteTag(layout_, slabs_.key, slot, reference_tag_);
    WriteValueRow(coding_, layout_, slabs_.value, slot, mean_);
    WriteValueRow(coding_, layout_, slabs_.value, slot + 1, residual_);
    run_open_ = false;
  }
  WriteHeader(layout_, state_, slabs_.value);
}

void PackedWriter::WriteExact(int64_t slot, const float* key, const float* value) {
  PackedRow row;
  coding_.round_row(key, layout_.head_size, &row);
  WriteKeyRow(layout_, slabs_.key, slot, row, coder_.row_granularity() ? 1 : 0);
  coding_.round_row(value, layout_.head_size, &row);
  WriteValueRow(coding_, layout_, slabs_.value, slot, row);
}

void PackedWriter::Code(int64_t token, const PackedRow& key, const PackedRow& value) {
  if (!reference_loaded_) LoadReference();
  const bool restarts = !has_reference_ || coder_.Restarts(token);
  if (coder_.row_granularity()) {
    CodeWholeRow(restarts, key, value);
  } else {
    CodeChannels(restarts, key, value);
  }
  has_reference_ = true;
  ++state_.coded_tokens;
  ++counts_.tokens;
}

void PackedWriter::CodeChannels(bool restarts, const PackedRow& key, const PackedRow& value) {
  const int64_t channels = layout_.channels();
  int64_t held = 0;
  if (restarts) {
    CopyRow(key, channels, &reference_);
  } else {
    float decoded[kMostPackedHeadSize];
    coding_.decode_row(key, channels, decoded);
    held = coder_.HoldChannels(coding_, kv_head_, decoded, reference_key_, decoded);
    coding_.round_row(decoded, layout_.head_size, &reference_);
  }
  coding_.decode_row(reference_, channels, reference_key_);
  counts_.held += held;
  AppendRow(reference_, value, static_cast<uint16_t>(held));
}

void PackedWriter::CodeWholeRow(bool restarts, const PackedRow& key, const PackedRow& value) {
  const int64_t channels = layout_.channels();
  float decoded[kMostPackedHeadSize];
  coding_.decode_row(key, channels, decoded);
  if (restarts || !coder_.HoldsWholeRow(coding_, kv_head_, decoded, reference_key_)) {
    CopyRow(key, channels, &reference_);
    std::memcpy(reference_key_, decoded, static_cast<size_t>(channels) * sizeof(float));
    AppendRow(reference_, value, 1);
    return;
  }
  ++counts_.held;
  if (runs_merge_ && state_.coded_rows > 0 && TokensOf(reference_tag_) < kMostTokens) {
    Merge(value);
  } else {
    AppendRow(reference_, value, kRepeats | 1);
  }
}

void PackedWriter::LoadReference() {
  reference_loaded_ = true;
  has_reference_ = state_.coded_rows > 0 || layout_.sinks > 0;
  if (!has_reference_) return;
  const int64_t slot = state_.coded_rows > 0 ? LastSlot() : layout_.sinks - 1;
  ReadKeyRow(layout_, slabs_.key, slot, &reference_);
  reference_tag_ = ReadTag(layout_, slabs_.key, slot);
  coding_.decode_row(reference_, layout_.channels(), reference_key_);
}

void PackedWriter::LoadMean() {
  mean_loaded_ = true;
  const int64_t slot = LastSlot();
  const int64_t channels = layout_.channels();
  ReadValueRow(coding_, layout_, slabs_.value, slot, &mean_);
  coding_.decode_row(mean_, channels, mean_value_);
  if (TokensOf(reference_tag_) < 2) return;
  float residual[kMostPackedHeadSize];
  ReadValueRow(coding_, layout_, slabs_.value, slot + 1, &residual_);
  coding_.decode_row(residual_, channels, residual);
  for (int64_t c = 0; c < channels; ++c) mean_value_[c] += residual[c];
}

void PackedWriter::Merge(const PackedRow& value) {
  if (!mean_loaded_) LoadMean();
  ++reference_tag_;
  const auto tokens = static_cast<float>(TokensOf(reference_tag_));
  coding_.merge_value(value, tokens, layout_.head_size, mean_value_, &mean_, &residual_);
  run_open_ = true;
}

void PackedWriter::AppendRow(const PackedRow& key, const PackedRow& value, uint16_t tag) {
  if (run_open_) {
    // Its residual would lie where this row goes.
    WriteTag(layout_, slabs_.key, LastSlot(), reference_tag_);
    WriteValueRow(coding_, layout_, slabs_.value, LastSlot(), mean_);
    run_open_ = false;
  }
  reference_tag_ = tag;
  mean_loaded_ = false;
  const int64_t first = layout_.first_coded();
  const int64_t blocks = layout_.SealedBlocks(state_.coded_rows);
  const int64_t slot = first + layout_.WaitingRows(state_.coded_rows);
  ++state_.coded_rows;
  WriteKeyRow(layout_, slabs_.key, slot, key, tag);
  WriteValueRow(coding_, layout_, slabs_.value, slot, value);
  if (layout_.SealedBlocks(state_.coded_rows) == blocks) return;
  const int64_t offset = layout_.BlockOffset(blocks);
  coding_.seal_keys(slabs_.key, first, layout_.head_size, slabs_.key + offset, layout_.block_bytes());
  coding_.seal_values(slabs_.value, first, layout_.head_size, slabs_.value + offset, layout_.block_bytes());
  WriteKeyRow(layout_, slabs_.key, first, key, tag);
  WriteValueRow(coding_, layout_, slabs_.value, first, value);
}

}  // namespace deltallm
