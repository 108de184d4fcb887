// The past of a packed cache as float32 rows, for prefill.
#pragma once

#include "cache/packed_layout.h"
#include "core/delta_plan.h"
#include "core/packed_view.h"
#include "core/past_blocks.h"

namespace deltallm {

/// First the sealed blocks, then the row area's rows in the order of their slots. Tokens that no query of the call sees
/// are left out, as far as whole blocks or slots hold them.
class PackedPastBlocks : public PastBlocks {
 public:
  /// The plan's past lies at `key` and `value`; all three must outlive this.
  PackedPastBlocks(const DeltaPlan& plan, const AttentionRules& rules, PackedSlabsOf<const uint8_t> key,
                   PackedSlabsOf<const uint8_t> value)
      : plan_(plan), rules_(rules), key_(key), value_(value) {}

  int64_t Count(int64_t head) const override;
  void Load(int64_t head, int64_t block, PastBlock* into) const override;

 private:
  PackedView View(int64_t head) const;
  void LoadSealed(int64_t head, const PackedView& view, int64_t block, PastBlock* into) const;
  void LoadSlots(int64_t head, const PackedView& view, int64_t first, PastBlock* into) const;

  const DeltaPlan& plan_;
  const AttentionRules& rules_;
  PackedSlabsOf<const uint8_t> key_;
  PackedSlabsOf<const uint8_t> value_;
};

}  // namespace deltallm
