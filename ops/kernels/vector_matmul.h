// Matrix product and transpose, for blocks of queries.
// Part of vector_kernels.h, to be included there only.

template <int kRows, int kVectors, bool kPart>
inline void MatmulTile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                       int64_t k, int64_t rest, bool accumulate) {
  Float sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const float* p = c + i * c_stride + v * kLanes;
      if (!accumulate) {
        sums[i][v] = Vec::Zero();
      } else {
        sums[i][v] = kPart ? Vec::LoadPart(p, rest) : Vec::Load(p);
      }
    }
  }
  for (int64_t l = 0; l < k; ++l) {
    Float columns[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      columns[v] =
          kPart ? Vec::LoadPart(b + l * b_stride + v * kLanes, rest) : Vec::Load(b + l * b_stride + v * kLanes);
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
      float* p = c + i * c_stride + v * kLanes;
      if constexpr (kPart) {
        Vec::StorePart(p, sums[i][v], rest);
      } else {
        Vec::Store(p, sums[i][v]);
      }
    }
  }
}

template <int kVectors, bool kPart>
inline void MatmulPanel(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                        int64_t m, int64_t k, int64_t rest, bool accumulate) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) {
    MatmulTile<6, kVectors, kPart>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride, k, rest,
                                   accumulate);
  }
  for (; i + 3 <= m; i += 3) {
    MatmulTile<3, kVectors, kPart>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride, k, rest,
                                   accumulate);
  }
  for (; i < m; ++i) {
    MatmulTile<1, kVectors, kPart>(a + i * a_stride, a_stride, b, b_stride, c + i * c_stride, c_stride, k, rest,
                                   accumulate);
  }
}

void Matmul(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride, int64_t m,
            int64_t n, int64_t k, bool accumulate) {
  constexpr int kWide = Vec::kPanelVectors;
  int64_t j = 0;
  for (; j + kWide * kLanes <= n; j += kWide * kLanes) {
    MatmulPanel<kWide, false>(a, a_stride, b + j, b_stride, c + j, c_stride, m, k, 0, accumulate);
  }
  for (; j + kLanes <= n; j += kLanes) {
    MatmulPanel<1, false>(a, a_stride, b + j, b_stride, c + j, c_stride, m, k, 0, accumulate);
  }
  if (j < n) MatmulPanel<1, true>(a, a_stride, b + j, b_stride, c + j, c_stride, m, k, n - j, accumulate);
}

template <typename T>
void Transpose(RowsOf<T> rows, int64_t count, int64_t head_size, float* columns, int64_t column_stride) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t height = Min(kLanes, count - j);
    for (int64_t c = 0; c < head_size; c += kLanes) {
      const int64_t width = Min(kLanes, head_size - c);
      Float tile[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const T* row = rows.data + (j + i) * rows.stride + c;
        if (i >= height) {
          tile[i] = Vec::Zero();
        } else {
          tile[i] = width == kLanes ? Vec::Load(row) : Vec::LoadPart(row, width);
        }
      }
      Vec::Transpose(tile);
      float* column = columns + c * column_stride + j;
      for (int i = 0; i < width; ++i, column += column_stride) {
        if (height == kLanes) {
          Vec::Store(column, tile[i]);
        } else {
          Vec::StorePart(column, tile[i], height);
        }
      }
    }
  }
}
