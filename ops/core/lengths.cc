#include "core/lengths.h"

#include <algorithm>

#include "core/checks.h"
#include "core/refusal.h"

namespace deltallm {
namespace {

struct MaskRow {
  int64_t first_one;  ///< −1 if there is none
  int64_t last_one;
};

MaskRow FindOnes(const int64_t* mask, int64_t b, int64_t columns) {
  const int64_t* row = mask + b * columns;
  MaskRow found{-1, -1};
  for (int64_t t = 0; t < columns; ++t) {
    if (row[t] == 0) continue;
    if (row[t] != 1) {
      Refuse("attention_mask has a ", row[t], " at row ", b, ", column ", t, ": it may hold 0 and 1 only.");
    }
    if (found.first_one < 0) found.first_one = t;
    found.last_one = t;
  }
  return found;
}

void FromSeqlens(int64_t batch, int64_t new_tokens, const Tensor& seqlens_k, const Tensor& total_tensor,
                 const Tensor& mask, Lengths& lengths) {
  if (!total_tensor.present) Refuse("seqlens_k comes without total_sequence_length: give both.");
  CheckType("seqlens_k", seqlens_k, ElementType::kInt32);
  CheckShape("seqlens_k", seqlens_k, Shape{batch}, "batch");
  CheckType("total_sequence_length", total_tensor, ElementType::kInt32);
  for (const int64_t dim : total_tensor.shape) {
    if (dim != 1) {
      Refuse("total_sequence_length has shape ", total_tensor.shape.ToString(), ": give one number.");
    }
  }
  const int64_t total = total_tensor.as<int32_t>()[0];
  if (total < new_tokens) {
    Refuse("total_sequence_length is ", total, " for ", new_tokens, " new tokens: give at least that many.");
  }
  if (mask.present && mask.shape[1] != total) {
    Refuse("attention_mask has ", mask.shape[1], " columns, but total_sequence_length is ", total,
           ": give one column per token.");
  }
  lengths.total = total;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t last = seqlens_k.as<int32_t>()[b];
    if (last < 0 || last >= total) {
      Refuse("seqlens_k[", b, "] is ", last, ": give 0 to total_sequence_length - 1 = ", total - 1, ".");
    }
    RowSpan row{0, 0, last + 1};
    if (total != new_tokens) {
      row.past = row.length - new_tokens;
      if (row.past < 0) {
        Refuse("seqlens_k[", b, "] says ", row.length, " tokens, but the call brings ", new_tokens,
               " new ones: give at least as many.");
      }
    }
    if (mask.present) {
      const MaskRow ones = FindOnes(mask.as<int64_t>(), b, total);
      row.start = ones.first_one < 0 ? row.length : std::min(ones.first_one, row.length);
    }
    lengths.rows.push_back(row);
  }
}

void FromMask(int64_t batch, int64_t new_tokens, const Tensor& mask, Lengths& lengths) {
  const int64_t total = mask.shape[1];
  if (total < new_tokens) {
    Refuse("attention_mask has ", total, " columns for ", new_tokens, " new tokens: give at least as many.");
  }
  lengths.total = total;
  for (int64_t b = 0; b < batch; ++b) {
    const MaskRow ones = FindOnes(mask.as<int64_t>(), b, total);
    RowSpan row{total - new_tokens, 0, 0};
    if (ones.first_one >= 0) {
      row.start = ones.first_one;
      row.length = ones.last_one + 1;
      for (int64_t t = row.start; t < row.length; ++t) {
        if (mask.as<int64_t>()[b * total + t] == 0) {
          Refuse("attention_mask has a zero between ones at row ", b, ", column ", t, ": it may pad both ends only.");
        }
      }
    }
    lengths.rows.push_back(row);
  }
}

}  // namespace

Lengths ResolveLengths(int64_t batch, int64_t new_tokens, int64_t past_capacity, const Tensor& seqlens_k,
                       const Tensor& total_sequence_length, const Tensor& attention_mask) {
  if (attention_mask.present) {
    CheckType("attention_mask", attention_mask, ElementType::kInt64);
    CheckShape("attention_mask", attention_mask, Shape{batch, -1}, "batch, past and new tokens");
  }
  Lengths lengths;
  lengths.rows.reserve(static_cast<size_t>(batch));
  if (seqlens_k.present) {
    FromSeqlens(batch, new_tokens, seqlens_k, total_sequence_length, attention_mask, lengths);
  } else {
    if (total_sequence_length.present) Refuse("total_sequence_length comes without seqlens_k: give both.");
    if (attention_mask.present) {
      FromMask(batch, new_tokens, attention_mask, lengths);
    } else {
      lengths.total = past_capacity + new_tokens;
      lengths.rows.assign(static_cast<size_t>(batch), RowSpan{past_capacity, 0, lengths.total});
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t past = lengths.rows[static_cast<size_t>(b)].past;
    if (past > past_capacity) {
      Refuse("Batch row ", b, " has ", past, " past tokens, but past_key holds ", past_capacity,
             ": give a past_key with at least that many rows.");
    }
  }
  return lengths;
}

}  // namespace deltallm
