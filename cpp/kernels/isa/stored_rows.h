#pragma once

// How few queries read rows of keys and values where they lie, in the type they are stored in: two vectors of
// numbers at a time, in whatever order costs least.
//
// Two bfloat16 numbers are one word. The upper one is a float32 number once the lower one is cleared, and the
// lower one once it is shifted up: no number is moved to another lane, but the even ones make up one vector
// and the odd ones the other. What meets them is brought into that order (arrange), and what comes of them
// back from it (restore), once and not for each row.

#include <immintrin.h>

#include <cstdint>

#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct PlainRow {
  using S = Simd<T>;
  using Stored = T;
  static void load_two(const T* x, typename S::Vector (&two)[2]) {
    two[0] = S::load(x);
    two[1] = S::load(x + S::lanes);
  }
  static void restore(typename S::Vector&, typename S::Vector&) {}
  static void arrange(T*, Index) {}
};

struct Bfloat16Row {
  using S = Simd<float>;
  using Stored = std::uint16_t;
#if defined(BLASFORMER_ISA_avx512)
  static void load_two(const std::uint16_t* x, __m512 (&two)[2]) {
    const __m512i words = _mm512_loadu_si512(x);
    two[0] = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    two[1] = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(-0x10000)));
  }
  static void restore(__m512& even, __m512& odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 first = _mm512_permutex2var_ps(even, low, odd);
    odd = _mm512_permutex2var_ps(even, high, odd);
    even = first;
  }
#elif defined(BLASFORMER_ISA_avx2)
  static void load_two(const std::uint16_t* x, __m256 (&two)[2]) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    two[0] = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    two[1] = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(-0x10000)));
  }
  static void restore(__m256& even, __m256& odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    even = _mm256_permute2f128_ps(low, high, 0x20);
    odd = _mm256_permute2f128_ps(low, high, 0x31);
  }
#else
  static void load_two(const std::uint16_t* x, __m128 (&two)[2]) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    two[0] = _mm_castsi128_ps(_mm_slli_epi32(words, 16));
    two[1] = _mm_castsi128_ps(_mm_and_si128(words, _mm_set1_epi32(-0x10000)));
  }
  static void restore(__m128& even, __m128& odd) {
    const __m128 low = _mm_unpacklo_ps(even, odd);
    odd = _mm_unpackhi_ps(even, odd);
    even = low;
  }
#endif
  // `columns` is a multiple of two vectors, as everywhere here.
  static void arrange(float* row, Index columns) {
    constexpr Index lanes = S::lanes;
    float numbers[2 * lanes];
    for (Index c = 0; c < columns; c += 2 * lanes) {
      for (Index i = 0; i < 2 * lanes; ++i) numbers[i] = row[c + i];
      for (Index i = 0; i < 2 * lanes; ++i) row[c + i % 2 * lanes + i / 2] = numbers[i];
    }
  }
};

// Numbers that were bfloat16 as float32, in the order of Bfloat16Row.
struct WidenedBfloat16Row : Bfloat16Row {
  using Stored = float;
  static void load_two(const float* x, S::Vector (&two)[2]) {
#if defined(BLASFORMER_ISA_avx512)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    two[0] = _mm512_permutex2var_ps(low, even, high);
    two[1] = _mm512_permutex2var_ps(low, odd, high);
#elif defined(BLASFORMER_ISA_avx2)
    const __m256 x0 = _mm256_loadu_ps(x), x1 = _mm256_loadu_ps(x + 8);
    const __m256 low = _mm256_permute2f128_ps(x0, x1, 0x20), high = _mm256_permute2f128_ps(x0, x1, 0x31);
    two[0] = _mm256_shuffle_ps(low, high, 0x88);
    two[1] = _mm256_shuffle_ps(low, high, 0xdd);
#else
    const __m128 low = _mm_loadu_ps(x), high = _mm_loadu_ps(x + 4);
    two[0] = _mm_shuffle_ps(low, high, 0x88);
    two[1] = _mm_shuffle_ps(low, high, 0xdd);
#endif
  }
};

#if !defined(BLASFORMER_ISA_baseline)
struct Float16Row {
  using S = Simd<float>;
  using Stored = std::uint16_t;
  static S::Vector load(const std::uint16_t* x) {
#if defined(BLASFORMER_ISA_avx512)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
#else
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
#endif
  }
  static void load_two(const std::uint16_t* x, S::Vector (&two)[2]) {
    two[0] = load(x);
    two[1] = load(x + S::lanes);
  }
  static void restore(S::Vector&, S::Vector&) {}
  static void arrange(float*, Index) {}
};
#endif

// sums[i] = the sum of x[i]: the same bits for any i, whatever the others are.
inline void sum_four(const Simd<double>::Vector (&x)[4], double* sums) {
  for (int i = 0; i < 4; ++i) sums[i] = Simd<double>::sum(x[i]);
}

// Each step adds one half of two vectors at a time to the other.
inline void sum_four(const Simd<float>::Vector (&x)[4], float* sums) {
#if defined(BLASFORMER_ISA_avx512)
  const __m512 ab = _mm512_unpacklo_ps(x[0], x[1]) + _mm512_unpackhi_ps(x[0], x[1]);
  const __m512 cd = _mm512_unpacklo_ps(x[2], x[3]) + _mm512_unpackhi_ps(x[2], x[3]);
  const __m512d ab_pairs = _mm512_castps_pd(ab), cd_pairs = _mm512_castps_pd(cd);
  const __m512 all = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_pairs, cd_pairs)) +
                     _mm512_castpd_ps(_mm512_unpackhi_pd(ab_pairs, cd_pairs));
  const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
  _mm_storeu_ps(sums, _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1));
#elif defined(BLASFORMER_ISA_avx2)
  const __m256 ab = _mm256_unpacklo_ps(x[0], x[1]) + _mm256_unpackhi_ps(x[0], x[1]);
  const __m256 cd = _mm256_unpacklo_ps(x[2], x[3]) + _mm256_unpackhi_ps(x[2], x[3]);
  const __m256d ab_pairs = _mm256_castps_pd(ab), cd_pairs = _mm256_castps_pd(cd);
  const __m256 all = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_pairs, cd_pairs)) +
                     _mm256_castpd_ps(_mm256_unpackhi_pd(ab_pairs, cd_pairs));
  _mm_storeu_ps(sums, _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
#else
  const __m128 ab = _mm_unpacklo_ps(x[0], x[1]) + _mm_unpackhi_ps(x[0], x[1]);
  const __m128 cd = _mm_unpacklo_ps(x[2], x[3]) + _mm_unpackhi_ps(x[2], x[3]);
  _mm_storeu_ps(sums, _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab));
#endif
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
