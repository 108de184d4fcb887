// A register tile of a matrix product, for blocks of queries.
// Part of vector_kernels.h, to be included there only.

/// kRows × kVectors·kLanes sums in registers.
template <int kRows, int kVectors>
struct ProductTile {
  Float sums[kRows][kVectors];

  inline __attribute__((always_inline)) void Clear() {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::Zero();
    }
  }

  inline __attribute__((always_inline)) void Load(const float* c, int64_t c_stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::Load(c + i * c_stride + v * kLanes);
    }
  }

  inline __attribute__((always_inline)) void Store(float* c, int64_t c_stride) const {
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) Vec::Store(c + i * c_stride + v * kLanes, sums[i][v]);
    }
  }

  /// += a[kRows][begin … end) · b[begin … end)[kVectors·kLanes], both row-major.
  inline __attribute__((always_inline)) void Add(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                                                 int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      Float columns[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) columns[v] = Vec::Load(b + l * b_stride + v * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        const Float factor = Vec::Set(a[i * a_stride + l]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[i][v] = Vec::MultiplyAdd(factor, columns[v], sums[i][v]);
      }
    }
  }
};

/// c[kRows × kVectors·kLanes] = (accumulate ? c : 0) + a[kRows × k] · b, all row-major. Not inlined: the compiler
/// spills sums where it has several of these loops to think of.
template <int kRows, int kVectors>
__attribute__((noinline)) void MatmulTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c,
                                          int64_t c_stride, int64_t k, bool accumulate) {
  ProductTile<kRows, kVectors> tile;
  if (accumulate) {
    tile.Load(c, c_stride);
  } else {
    tile.Clear();
  }
  tile.Add(a, a_stride, b, b_stride, 0, k);
  tile.Store(c, c_stride);
}
