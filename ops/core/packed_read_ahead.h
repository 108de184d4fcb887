// The order in which a query reads its packed rows, and what to ask the memory for meanwhile.
#pragma once

#include <cstdint>

#include "core/packed_query.h"
#include "kernels/packed_kernels.h"

namespace deltallm {

/// The tiles of PackedQuery::Run in panels of at most `most` tiles, one after the other.
class PanelWalk {
 public:
  PanelWalk(const PackedQuery& query, int64_t first, int64_t last, int64_t most)
      : query_(query), first_(first), last_(last), most_(most) {}
  bool Next(PackedQuery::Stretch* panel);

 private:
  const PackedQuery& query_;
  int64_t first_;
  int64_t last_;
  int64_t most_;
  int64_t stretch_ = 0;
  int64_t passed_ = 0;  // tiles of the stretches before
  int64_t tile_ = 0;
};

/// Runs a fixed distance ahead of the bytes that the kernels read of one slab, keys or values, and at its end goes on
/// to the slab of the next head. The hardware's own prefetching starts anew with every slab, and with a thousand tokens
/// slabs are so short that it would hardly do anything else.
class ReadAhead {
 public:
  /// `next_slab` may be null. `cold`: nobody asked for this slab's first bytes.
  ReadAhead(const PackedQuery& query, int64_t first, int64_t last, const uint8_t* slab, const uint8_t* next_slab,
            bool cold);

  /// What a call should ask for that reads `bytes` bytes.
  Ahead Take(int64_t bytes);
  /// `bytes` bytes are left out.
  void Skip(int64_t bytes) { lead_ -= bytes; }

 private:
  static constexpr int64_t kDistance = 16384;

  bool Advance();
  Ahead Piece(const uint8_t* slab, const PackedQuery::Stretch& panel) const;

  const PackedQuery& query_;
  PanelWalk walk_;
  const uint8_t* slab_;
  Ahead piece_;  // its beginning has been asked for
  Ahead next_slab_;
  int64_t lead_ = 0;  // bytes asked for and not read yet
};

/// Of the keys and of the values.
struct ReadAheads {
  ReadAhead keys;
  ReadAhead values;
};

}  // namespace deltallm
