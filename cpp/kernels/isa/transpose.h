#pragma once

// From rows of queries to vectors of queries, and back.

#include <immintrin.h>

#include "core/index.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

inline Index smaller(Index a, Index b) { return a < b ? a : b; }
inline Index larger(Index a, Index b) { return a > b ? a : b; }

#if defined(__SSE2__)
inline void transpose_square(__m128& a, __m128& b, __m128& c, __m128& d) { _MM_TRANSPOSE4_PS(a, b, c, d); }
#endif

#if defined(BLASFORMER_ISA_avx512)
// Four columns of 16 rows. Rows r, r + 4, r + 8 and r + 12 lie side by side in one register: the 4 x 4
// transpose of SSE, done in each quarter, then yields a column of 16 lanes at once.
struct FourColumns {
  __m512 column[4];
};
inline FourColumns four_columns(const float* const* row, Index column) {
  __m512 x[4];
  for (Index r = 0; r < 4; ++r) {
    x[r] = _mm512_castps128_ps512(_mm_loadu_ps(row[r] + column));
    x[r] = _mm512_insertf32x4(x[r], _mm_loadu_ps(row[r + 4] + column), 1);
    x[r] = _mm512_insertf32x4(x[r], _mm_loadu_ps(row[r + 8] + column), 2);
    x[r] = _mm512_insertf32x4(x[r], _mm_loadu_ps(row[r + 12] + column), 3);
  }
  const __m512 low01 = _mm512_unpacklo_ps(x[0], x[1]), high01 = _mm512_unpackhi_ps(x[0], x[1]);
  const __m512 low23 = _mm512_unpacklo_ps(x[2], x[3]), high23 = _mm512_unpackhi_ps(x[2], x[3]);
  return {{_mm512_shuffle_ps(low01, low23, 0x44), _mm512_shuffle_ps(low01, low23, 0xee),
           _mm512_shuffle_ps(high01, high23, 0x44), _mm512_shuffle_ps(high01, high23, 0xee)}};
}
#endif

// out[c][lane] = row[lane][c] for whole vectors of lanes. The rows are dense.
inline void transpose_rows(const float* const* row, Index lanes, Index columns, float* out) {
  Index wide = 0;  // columns done
#if defined(BLASFORMER_ISA_avx512)
  wide = columns / 4 * 4;
  for (Index l = 0; l < lanes; l += 16) {
    for (Index c = 0; c < wide; c += 4) {
      const FourColumns four = four_columns(row + l, c);
      for (Index i = 0; i < 4; ++i) _mm512_storeu_ps(out + (c + i) * lanes + l, four.column[i]);
    }
  }
#endif
  for (Index l = 0; l < lanes; l += 4) {
    Index c = wide;
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
  for (Index l = 0; l < lanes; l += 2) {
    Index c = 0;
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
  for (Index l = 0; l < count; l += 4) {
    const __m128 scale = _mm_loadu_ps(factor + l);
    const Index rows = smaller(4, count - l);
    Index c = 0;
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
  for (Index l = 0; l < count; l += 2) {
    const __m128d scale = _mm_loadu_pd(factor + l);
    const Index rows = smaller(2, count - l);
    Index c = 0;
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

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
