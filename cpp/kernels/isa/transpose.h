#pragma once

// From rows of queries to vectors of queries, and back.

#include <immintrin.h>

#include "core/index.h"
#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
constexpr Index larger(Index a, Index b) { return a > b ? a : b; }

#if defined(__SSE2__)
inline void transpose_square(__m128& a, __m128& b, __m128& c, __m128& d) { _MM_TRANSPOSE4_PS(a, b, c, d); }
#endif

#if defined(BLASFORMER_ISA_avx512)
// A square of as many rows and columns as a vector has lanes. Each row is read by one load: rows that lie a
// multiple of the page size apart share few places in the L1 cache, and would drive each other out between
// one part of a line and the next. Quarters of rows r, r + n, r + 2 n and r + 3 n come to lie side by side in
// one register; what is left is a small transpose in each quarter.
struct Quarters {
  __m512 of[4];  // first, second, third and last quarters of the four rows
};
inline Quarters quarters(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44), ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
  const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44), cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  return {{_mm512_shuffle_f32x4(ab_low, cd_low, 0x88), _mm512_shuffle_f32x4(ab_low, cd_low, 0xdd),
           _mm512_shuffle_f32x4(ab_high, cd_high, 0x88), _mm512_shuffle_f32x4(ab_high, cd_high, 0xdd)}};
}

struct FloatSquare {
  __m512 column[16];
};
inline FloatSquare square(const float* const* row, Index first) {
  Quarters x[4];
  for (Index r = 0; r < 4; ++r) {
    x[r] = quarters(_mm512_loadu_ps(row[r] + first), _mm512_loadu_ps(row[r + 4] + first),
                    _mm512_loadu_ps(row[r + 8] + first), _mm512_loadu_ps(row[r + 12] + first));
  }
  FloatSquare result;
  for (Index q = 0; q < 4; ++q) {
    const __m512 low01 = _mm512_unpacklo_ps(x[0].of[q], x[1].of[q]);
    const __m512 low23 = _mm512_unpacklo_ps(x[2].of[q], x[3].of[q]);
    const __m512 high01 = _mm512_unpackhi_ps(x[0].of[q], x[1].of[q]);
    const __m512 high23 = _mm512_unpackhi_ps(x[2].of[q], x[3].of[q]);
    result.column[4 * q] = _mm512_shuffle_ps(low01, low23, 0x44);
    result.column[4 * q + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
    result.column[4 * q + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
    result.column[4 * q + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
  }
  return result;
}

struct DoubleSquare {
  __m512d column[8];
};
inline DoubleSquare square(const double* const* row, Index first) {
  const auto load = [row, first](Index r) { return _mm512_castpd_ps(_mm512_loadu_pd(row[r] + first)); };
  const Quarters even = quarters(load(0), load(2), load(4), load(6));
  const Quarters odd = quarters(load(1), load(3), load(5), load(7));
  DoubleSquare result;
  for (Index q = 0; q < 4; ++q) {
    const __m512d x = _mm512_castps_pd(even.of[q]), y = _mm512_castps_pd(odd.of[q]);
    result.column[2 * q] = _mm512_unpacklo_pd(x, y);
    result.column[2 * q + 1] = _mm512_unpackhi_pd(x, y);
  }
  return result;
}

#elif defined(BLASFORMER_ISA_avx2)
// As above, with halves of rows r and r + n side by side.
struct FloatSquare {
  __m256 column[8];
};
inline FloatSquare square(const float* const* row, Index first) {
  FloatSquare result;
  for (Index half = 0; half < 2; ++half) {
    __m256 x[4];
    for (Index r = 0; r < 4; ++r) {
      const float* const start = row[r] + first + 4 * half;
      x[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(start)),
                                  _mm_loadu_ps(row[r + 4] + first + 4 * half), 1);
    }
    const __m256 low01 = _mm256_unpacklo_ps(x[0], x[1]), low23 = _mm256_unpacklo_ps(x[2], x[3]);
    const __m256 high01 = _mm256_unpackhi_ps(x[0], x[1]), high23 = _mm256_unpackhi_ps(x[2], x[3]);
    result.column[4 * half] = _mm256_shuffle_ps(low01, low23, 0x44);
    result.column[4 * half + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
    result.column[4 * half + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
    result.column[4 * half + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
  }
  return result;
}

struct DoubleSquare {
  __m256d column[4];
};
inline DoubleSquare square(const double* const* row, Index first) {
  DoubleSquare result;
  for (Index half = 0; half < 2; ++half) {
    __m256d x[2];
    for (Index r = 0; r < 2; ++r) {
      const double* const start = row[r] + first + 2 * half;
      x[r] = _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(start)),
                                  _mm_loadu_pd(row[r + 2] + first + 2 * half), 1);
    }
    result.column[2 * half] = _mm256_unpacklo_pd(x[0], x[1]);
    result.column[2 * half + 1] = _mm256_unpackhi_pd(x[0], x[1]);
  }
  return result;
}

#else
struct FloatSquare {
  __m128 column[4];
};
inline FloatSquare square(const float* const* row, Index first) {
  FloatSquare result;
  for (Index r = 0; r < 4; ++r) result.column[r] = _mm_loadu_ps(row[r] + first);
  transpose_square(result.column[0], result.column[1], result.column[2], result.column[3]);
  return result;
}

struct DoubleSquare {
  __m128d column[2];
};
inline DoubleSquare square(const double* const* row, Index first) {
  const __m128d x = _mm_loadu_pd(row[0] + first), y = _mm_loadu_pd(row[1] + first);
  return {{_mm_unpacklo_pd(x, y), _mm_unpackhi_pd(x, y)}};
}
#endif

// The squares of transpose_rows: how many columns they cover.
template <class T>
inline Index transpose_squares(const T* const* row, Index lanes, Index columns, T* out) {
  using S = Simd<T>;
  const Index covered = columns / S::lanes * S::lanes;
  for (Index l = 0; l < lanes; l += S::lanes) {
    for (Index c = 0; c < covered; c += S::lanes) {
      const auto block = square(row + l, c);
      for (Index i = 0; i < S::lanes; ++i) S::store(out + (c + i) * lanes + l, block.column[i]);
    }
  }
  return covered;
}

// Those of the way back: calls write(lane, first column, vector of columns).
template <class T, class Write>
inline Index untranspose_squares(const T* x, Index lanes, Index columns, Index count, const Write& write) {
  using S = Simd<T>;
  const Index covered = columns / S::lanes * S::lanes;
  for (Index l = 0; l < count; l += S::lanes) {
    for (Index c = 0; c < covered; c += S::lanes) {
      const T* column[S::lanes];
      for (Index i = 0; i < S::lanes; ++i) column[i] = x + (c + i) * lanes;
      const auto block = square(column, l);
      for (Index i = 0; i < S::lanes && l + i < count; ++i) write(l + i, c, block.column[i]);
    }
  }
  return covered;
}

// out[c][lane] = row[lane][c] for whole vectors of lanes. The rows are dense.
inline void transpose_rows(const float* const* row, Index lanes, Index columns, float* out) {
  const Index done = transpose_squares(row, lanes, columns, out);
  for (Index l = 0; l < lanes; l += 4) {
    Index c = done;
    for (; c + 4 <= columns; c += 4) {
      __m128 x0 = _mm_loadu_ps(row[l] + c), x1 = _mm_loadu_ps(row[l + 1] + c);
      __m128 x2 = _mm_loadu_ps(row[l + 2] + c), x3 = _mm_loadu_ps(row[l + 3] + c);
      transpose_square(x0, x1, x2, x3);
      _mm_storeu_ps(out + c * lanes + l, x0);
      _mm_storeu_ps(out + (c + 1) * lanes + l, x1);
      _mm_storeu_ps(out + (c + 2) * lanes + l, x2);
      _mm_storeu_ps(out + (c + 3) * lanes + l, x3);
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < 4; ++i) out[c * lanes + l + i] = row[l + i][c];
    }
  }
}

inline void transpose_rows(const double* const* row, Index lanes, Index columns, double* out) {
  const Index done = transpose_squares(row, lanes, columns, out);
  for (Index l = 0; l < lanes; l += 2) {
    Index c = done;
    for (; c + 2 <= columns; c += 2) {
      const __m128d x0 = _mm_loadu_pd(row[l] + c), x1 = _mm_loadu_pd(row[l + 1] + c);
      _mm_storeu_pd(out + c * lanes + l, _mm_unpacklo_pd(x0, x1));
      _mm_storeu_pd(out + (c + 1) * lanes + l, _mm_unpackhi_pd(x0, x1));
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < 2; ++i) out[c * lanes + l + i] = row[l + i][c];
    }
  }
}

// row[lane][c] = x[c][lane] * factor[lane] for the first `count` lanes: the way back.
inline void untranspose_rows(const float* x, Index lanes, Index columns, const float* factor, Index count,
                             float* const* row) {
  const Index done = untranspose_squares(x, lanes, columns, count, [&](Index l, Index c, auto part) {
    Simd<float>::store(row[l] + c, part * Simd<float>::broadcast(factor[l]));
  });
  for (Index l = 0; l < count; l += 4) {
    const __m128 scale = _mm_loadu_ps(factor + l);
    const Index rows = smaller(4, count - l);
    Index c = done;
    for (; c + 4 <= columns && rows == 4; c += 4) {
      __m128 x0 = _mm_mul_ps(_mm_loadu_ps(x + c * lanes + l), scale);
      __m128 x1 = _mm_mul_ps(_mm_loadu_ps(x + (c + 1) * lanes + l), scale);
      __m128 x2 = _mm_mul_ps(_mm_loadu_ps(x + (c + 2) * lanes + l), scale);
      __m128 x3 = _mm_mul_ps(_mm_loadu_ps(x + (c + 3) * lanes + l), scale);
      transpose_square(x0, x1, x2, x3);
      _mm_storeu_ps(row[l] + c, x0);
      _mm_storeu_ps(row[l + 1] + c, x1);
      _mm_storeu_ps(row[l + 2] + c, x2);
      _mm_storeu_ps(row[l + 3] + c, x3);
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < rows; ++i) row[l + i][c] = x[c * lanes + l + i] * factor[l + i];
    }
  }
}

inline void untranspose_rows(const double* x, Index lanes, Index columns, const double* factor, Index count,
                             double* const* row) {
  const Index done = untranspose_squares(x, lanes, columns, count, [&](Index l, Index c, auto part) {
    Simd<double>::store(row[l] + c, part * Simd<double>::broadcast(factor[l]));
  });
  for (Index l = 0; l < count; l += 2) {
    const __m128d scale = _mm_loadu_pd(factor + l);
    const Index rows = smaller(2, count - l);
    Index c = done;
    for (; c + 2 <= columns && rows == 2; c += 2) {
      const __m128d x0 = _mm_mul_pd(_mm_loadu_pd(x + c * lanes + l), scale);
      const __m128d x1 = _mm_mul_pd(_mm_loadu_pd(x + (c + 1) * lanes + l), scale);
      _mm_storeu_pd(row[l] + c, _mm_unpacklo_pd(x0, x1));
      _mm_storeu_pd(row[l + 1] + c, _mm_unpackhi_pd(x0, x1));
    }
    for (; c < columns; ++c) {
      for (Index i = 0; i < rows; ++i) row[l + i][c] = x[c * lanes + l + i] * factor[l + i];
    }
  }
}

// row[lane][c] (=, +=) x[c][lane] for the first `count` lanes.
template <class T>
inline void write_transposed(const T* x, Index lanes, Index columns, bool add, Index count, T* const* row) {
  using S = Simd<T>;
  const Index done = untranspose_squares(x, lanes, columns, count, [&](Index l, Index c, auto part) {
    T* const target = row[l] + c;
    S::store(target, add ? S::load(target) + part : part);
  });
  for (Index l = 0; l < count; ++l) {
    for (Index c = done; c < columns; ++c) row[l][c] = add ? row[l][c] + x[c * lanes + l] : x[c * lanes + l];
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
