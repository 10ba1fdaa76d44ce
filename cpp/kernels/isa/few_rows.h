#pragma once

// y = x weight^T + bias for few rows of x, which is as fast as the weight is read: it is read once, where it
// lies, in the type that it is stored in. A sum is the same, bit for bit, whatever that is.

#include <cstdint>

#include "core/index.h"
#include "kernels/isa/rows.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Elements as numbers to compute with: those of a weight that is stored as such,
inline Vector<float> load_widened(const float* x, Index n) { return load_lanes(x, n); }
inline Vector<double> load_widened(const double* x, Index n) { return load_lanes(x, n); }

// and those of one in bfloat16.
inline Vector<float> widen_lanes_of_bfloat16(const std::uint16_t* x) {
#if defined(BLASFORMER_ISA_avx512)
  const __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(upper, 16));
#elif defined(BLASFORMER_ISA_avx2)
  const __m256i upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(upper, 16));
#else
  const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
  return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), four));
#endif
}
inline Vector<float> load_widened(const std::uint16_t* bfloat16, Index n) {
  if (n == Simd<float>::lanes) return widen_lanes_of_bfloat16(bfloat16);
  std::uint16_t first[Simd<float>::lanes] = {};
  for (Index i = 0; i < n; ++i) first[i] = bfloat16[i];
  return widen_lanes_of_bfloat16(first);
}

// How many outputs share one pass over the rows of x, up to 4: with 4 rows, AVX-512 holds 16 sums in its 32
// registers, the others 8 in their 16.
#if defined(BLASFORMER_ISA_avx512)
constexpr Index kOutputBlock = 4;
#else
constexpr Index kOutputBlock = 2;
#endif

// The products of a block of rows of x with a block of rows of weight, summed in vectors and then across
// them.
template <class T, class Stored, Index rows, Index outputs>
inline void dot_products(const T* x, Index features, const Stored* weight, Index weight_stride, const T* bias,
                         T* y, Index y_stride) {
  using S = Simd<T>;
  Vector<T> sums[rows][outputs];
  for (auto& of_row : sums) {
    for (auto& s : of_row) s = S::zero();
  }
  const auto step = [&](Index i, Index n) {
    Vector<T> row[rows];
    for (Index r = 0; r < rows; ++r) row[r] = load_lanes(x + r * features + i, n);
    for (Index o = 0; o < outputs; ++o) {
      const Vector<T> w = load_widened(weight + o * weight_stride + i, n);
      for (Index r = 0; r < rows; ++r) sums[r][o] = S::fma(row[r], w, sums[r][o]);
    }
  };
  Index i = 0;
  for (; i + S::lanes <= features; i += S::lanes) step(i, S::lanes);
  if (i < features) step(i, features - i);
  for (Index r = 0; r < rows; ++r) {
    for (Index o = 0; o < outputs; ++o) y[r * y_stride + o] = S::sum(sums[r][o]) + (bias ? bias[o] : T(0));
  }
}

// Each block of weights meets all rows of x before the next one is read.
template <class T, class Stored, Index outputs>
inline void few_rows_block(const T* x, Index rows, Index features, const Stored* weight, Index weight_stride,
                           const T* bias, T* y, Index y_stride) {
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    dot_products<T, Stored, 4, outputs>(x + r * features, features, weight, weight_stride, bias,
                                        y + r * y_stride, y_stride);
  }
  x += r * features;
  y += r * y_stride;
  switch (rows - r) {
    case 3: return dot_products<T, Stored, 3, outputs>(x, features, weight, weight_stride, bias, y, y_stride);
    case 2: return dot_products<T, Stored, 2, outputs>(x, features, weight, weight_stride, bias, y, y_stride);
    case 1: return dot_products<T, Stored, 1, outputs>(x, features, weight, weight_stride, bias, y, y_stride);
    default: return;
  }
}

template <class T, class Stored>
void few_rows_linear(const T* x, Index rows, Index features, const Stored* weight, Index weight_stride,
                     const T* bias, Index outputs, T* y, Index y_stride) {
  Index o = 0;
  if (rows == 1) {  // independent sums hide the latency of each other
    for (; o + 8 <= outputs; o += 8) {
      dot_products<T, Stored, 1, 8>(x, features, weight + o * weight_stride, weight_stride,
                                    bias ? bias + o : nullptr, y + o, y_stride);
    }
  }
  for (; o + kOutputBlock <= outputs; o += kOutputBlock) {
    few_rows_block<T, Stored, kOutputBlock>(x, rows, features, weight + o * weight_stride, weight_stride,
                                            bias ? bias + o : nullptr, y + o, y_stride);
  }
  for (; o < outputs; ++o) {
    few_rows_block<T, Stored, 1>(x, rows, features, weight + o * weight_stride, weight_stride,
                                 bias ? bias + o : nullptr, y + o, y_stride);
  }
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
