// Rotary position embedding of one row.
#pragma once

#include <cstdint>

namespace deltallm {

/// Rotates the first 2·half channels of x by the angles whose cosines and sines are given; the rest is copied.
///
/// Channel pairs are (c, c + half), or (2c, 2c + 1) if interleaved: (x, y) becomes (x·cos − y·sin, y·cos + x·sin), each
/// product and sum rounded on its own, so that the result is bit for bit that of the same float32 formula elsewhere.
/// x and y hold head_size values and may be the same row.
void RotateRow(const float* x, int64_t head_size, const float* cos, const float* sin, int64_t half, bool interleaved,
               float* y);

}  // namespace deltallm
