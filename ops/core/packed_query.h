// The queries of one group against a range of one head's packed rows.
#pragma once

#include <cstdint>

#include "core/packed_attend.h"
#include "core/packed_view.h"
#include "core/partial.h"
#include "core/scratch.h"

namespace deltallm {

class PanelWalk;
class ReadAhead;
struct ReadAheads;

class PackedQuery {
 public:
  PackedQuery(const PackedAttendCall& call, int64_t b, int64_t kv_head, int64_t s, const PackedState& state);

  /// Tiles of 16 rows to read, a block counting as eight; the unit of `Run`'s ranges.
  int64_t tiles() const { return tiles_; }

  /// Attends over the tiles [first, last), whose ends are multiples of 8 or tiles(). `goes_on`: the calling thread
  /// probably reads the next head afterwards, so memory is asked for its first bytes in time.
  void Run(int64_t first, int64_t last, const Partial& partial, bool goes_on) const;

  /// The output rows of the group.
  void Write(const Partial& partial) const;

 private:
  friend class PanelWalk;
  friend class ReadAhead;

  static constexpr int64_t kRowsPerPanel = 512;
  static constexpr int64_t kTilesPerPanel = kRowsPerPanel / kTileRows;
  static constexpr int64_t kTilesPerBlock = kBlockRows / kTileRows;

  /// Tiles [begin, end) that follow each other in the slab; of the sealed blocks, with eight per block, or of the row
  /// area.
  struct Stretch {
    bool sealed;
    int64_t begin;
    int64_t end;
  };

  /// Working memory of one Run.
  struct Work {
    float* query;           // [G, D]
    QuantizedQuery packed;  // [G, stride]
    float* weights;         // [G, kRowsPerPanel]
    uint16_t* tags;         // [kRowsPerPanel]
    float* sums;            // [G]
    uint8_t* tile;
    uint8_t* block;
    explicit Work(const PackedQuery& query);

   private:
    static int64_t Floats(const PackedQuery& query);
    Scratch scratch_;
  };

  void AddStretch(bool sealed, int64_t begin, int64_t end);
  void Panel(const Stretch& panel, const Work& work, const Partial& partial, ReadAheads& ahead) const;
  void Score(const Stretch& panel, const Work& work, ReadAheads& ahead) const;
  /// Bias, and −∞ for rows the query does not see.
  void Mask(const Stretch& panel, int64_t g, float* scores) const;
  /// The key tags of the panel's rows; false if they are not needed, because every row holds one token.
  bool LoadTags(const Stretch& panel, uint16_t* tags) const;
  /// Bit t: some weight of the panel's tile t (or block t) is worth adding its values.
  uint32_t Needed(const Stretch& panel, const float* weights) const;
  void CountLeftOut(const Stretch& panel, uint32_t needed) const;
  /// Whether a coded row's tokens are all held ones.
  bool Repeats(bool sealed, int64_t row) const;
  void AddValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum, ReadAheads& ahead) const;
  void AddBlockValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum, ReadAheads& ahead) const;
  void AddTileValues(const Stretch& panel, uint32_t needed, const Work& work, float* sum, ReadAheads& ahead) const;

  /// The end of the tiles from `tile` on that are whole and seen in every row; `tile` itself if it is not.
  int64_t CleanUntil(int64_t tile) const;
  /// Calls body(first row, last row, SlotRun) for what the query sees of rows [begin, end) of a stretch's kind.
  template <typename Body>
  void ForEachSeen(bool sealed, int64_t begin, int64_t end, const Body& body) const;

  const uint8_t* Block(const uint8_t* slab, int64_t block) const { return slab + layout_.BlockOffset(block); }

  const PackedAttendCall& call_;
  const Kernels& kernels_;
  const PackedLayout& layout_;
  int64_t b_;
  int64_t kv_head_;
  int64_t s_;
  int64_t group_;
  int64_t head_size_;
  const uint8_t* key_;
  const uint8_t* value_;
  PackedView view_;
  bool has_runs_;
  std::array<Stretch, 5> stretches_;
  int64_t stretch_count_ = 0;
  int64_t tiles_ = 0;
};

}  // namespace deltallm
