// A register tile of a matrix product, for blocks of queries.
// Part of vector_kernels.h, to be included there only.

/// c[kRows × kVectors·kLanes] = (accumulate ? c : 0) + a[kRows × k] · b, all row-major.
template <int kRows, int kVectors>
inline void MatmulTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                       int64_t k, bool accumulate) {
  Float sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = accumulate ? Vec::Load(c + i * c_stride + v * kLanes) : Vec::Zero();
    }
  }
  for (int64_t l = 0; l < k; ++l) {
    Float columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = Vec::Load(b + l * b_stride + v * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Float factor = Vec::Set(a[i * a_stride + l]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::MultiplyAdd(factor, columns[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Vec::Store(c + i * c_stride + v * kLanes, sums[i][v]);
    }
  }
}
