#pragma once

// The small vector type that every kernel is written over. Simd<T> gives, for float and double, the widest
// vector of the instruction set this file is being compiled for (BLASFORMER_ISA): 16 floats with AVX-512, 8
// with AVX2, 4 in the baseline. Vectors add, subtract, multiply and divide with the ordinary operators; what
// the operators lack is below.
//
// This header is included only by the files of kernels/isa/, which are compiled once per instruction set.
// Everything in it has internal linkage, so that the linker can never hand code of a newer instruction set to
// the rest of the library.

#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "core/index.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct Simd;

#if defined(BLASFORMER_ISA_avx512)

template <>
struct Simd<float> {
  using Vector = __m512;
  using Mask = __mmask16;
  static constexpr Index lanes = 16;
  static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  static Vector load_first(const float* p, Index n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_first(float* p, Vector x, Index n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
  static Vector sqrt(Vector a) { return _mm512_sqrt_ps(a); }
  static Vector abs(Vector a) { return _mm512_abs_ps(a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    const __m512i bit = _mm512_set1_epi32(std::numeric_limits<std::int32_t>::min());
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xca));
  }
  static Vector round(Vector a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vector ldexp(Vector x, Vector n) { return _mm512_scalef_ps(x, n); }
  static Mask first(Index n) { return static_cast<Mask>((1u << n) - 1u); }
  static Mask from_bits(std::uint32_t bits) { return static_cast<Mask>(bits); }
  static std::uint32_t to_bits(Mask m) { return m; }
  static Mask less(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Mask equal(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static Vector select(Mask m, Vector yes, Vector no) { return _mm512_mask_blend_ps(m, no, yes); }
  static Vector zero_where(Mask m, Vector x) { return _mm512_maskz_mov_ps(_knot_mask16(m), x); }
  static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
  static float largest(Vector a) { return _mm512_reduce_max_ps(a); }
};

template <>
struct Simd<double> {
  using Vector = __m512d;
  using Mask = __mmask8;
  static constexpr Index lanes = 8;
  static Vector broadcast(double x) { return _mm512_set1_pd(x); }
  static Vector zero() { return _mm512_setzero_pd(); }
  static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Vector x) { _mm512_storeu_pd(p, x); }
  static Vector load_first(const double* p, Index n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static void store_first(double* p, Vector x, Index n) { _mm512_mask_storeu_pd(p, first(n), x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm512_max_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_min_pd(a, b); }
  static Vector sqrt(Vector a) { return _mm512_sqrt_pd(a); }
  static Vector abs(Vector a) { return _mm512_abs_pd(a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    const __m512i bit = _mm512_set1_epi64(std::numeric_limits<std::int64_t>::min());
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(bit, _mm512_castpd_si512(sign), _mm512_castpd_si512(magnitude), 0xca));
  }
  static Vector round(Vector a) {
    return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vector ldexp(Vector x, Vector n) { return _mm512_scalef_pd(x, n); }
  static Mask first(Index n) { return static_cast<Mask>((1u << n) - 1u); }
  static Mask from_bits(std::uint32_t bits) { return static_cast<Mask>(bits); }
  static std::uint32_t to_bits(Mask m) { return m; }
  static Mask less(Vector a, Vector b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
  static Mask equal(Vector a, Vector b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  static Vector select(Mask m, Vector yes, Vector no) { return _mm512_mask_blend_pd(m, no, yes); }
  static Vector zero_where(Mask m, Vector x) { return _mm512_maskz_mov_pd(_knot_mask8(m), x); }
  static double sum(Vector a) { return _mm512_reduce_add_pd(a); }
  static double largest(Vector a) { return _mm512_reduce_max_pd(a); }
};

#elif defined(BLASFORMER_ISA_avx2)

template <>
struct Simd<float> {
  using Vector = __m256;
  using Mask = __m256;  // all ones or all zeros per lane
  static constexpr Index lanes = 8;
  static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  static Vector load_first(const float* p, Index n) {
    return _mm256_maskload_ps(p, _mm256_castps_si256(first(n)));
  }
  static void store_first(float* p, Vector x, Index n) {
    _mm256_maskstore_ps(p, _mm256_castps_si256(first(n)), x);
  }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static Vector sqrt(Vector a) { return _mm256_sqrt_ps(a); }
  static Vector abs(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    return _mm256_or_ps(abs(magnitude), _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
  }
  static Vector round(Vector a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // Added to |a| < 2^22, leaves in the low bits the integer next to a, plus 127; taken off again, that
  // integer.
  static constexpr float integer_shift = 12582912.0f + 127.0f;
  // 2^n for integers n in [-126, 127]: n + 127 is moved from the low bits of the sum into the exponent.
  static Vector power_of_shifted(Vector sum) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(sum), 23));
  }
  static Vector power_of_two(Vector n) { return power_of_shifted(n + broadcast(integer_shift)); }
  static Vector ldexp(Vector x, Vector n) {
    const Vector half = round(n * broadcast(0.5f));
    return x * power_of_two(half) * power_of_two(n - half);
  }
  static Mask first(Index n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane));
  }
  static Mask from_bits(std::uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane));
  }
  static std::uint32_t to_bits(Mask m) { return static_cast<std::uint32_t>(_mm256_movemask_ps(m)); }
  static Mask less(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Mask equal(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static Vector select(Mask m, Vector yes, Vector no) { return _mm256_blendv_ps(no, yes, m); }
  static Vector zero_where(Mask m, Vector x) { return _mm256_andnot_ps(m, x); }
  static float sum(Vector a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float largest(Vector a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

template <>
struct Simd<double> {
  using Vector = __m256d;
  using Mask = __m256d;
  static constexpr Index lanes = 4;
  static Vector broadcast(double x) { return _mm256_set1_pd(x); }
  static Vector zero() { return _mm256_setzero_pd(); }
  static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Vector x) { _mm256_storeu_pd(p, x); }
  static Vector load_first(const double* p, Index n) {
    return _mm256_maskload_pd(p, _mm256_castpd_si256(first(n)));
  }
  static void store_first(double* p, Vector x, Index n) {
    _mm256_maskstore_pd(p, _mm256_castpd_si256(first(n)), x);
  }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm256_max_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_pd(a, b); }
  static Vector sqrt(Vector a) { return _mm256_sqrt_pd(a); }
  static Vector abs(Vector a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    return _mm256_or_pd(abs(magnitude), _mm256_and_pd(_mm256_set1_pd(-0.0), sign));
  }
  static Vector round(Vector a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static constexpr double integer_shift = 6755399441055744.0 + 1023.0;  // likewise
  static Vector power_of_shifted(Vector sum) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(sum), 52));
  }
  static Vector power_of_two(Vector n) { return power_of_shifted(n + broadcast(integer_shift)); }
  static Vector ldexp(Vector x, Vector n) {
    const Vector half = round(n * broadcast(0.5));
    return x * power_of_two(half) * power_of_two(n - half);
  }
  static Mask first(Index n) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_castsi256_pd(_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), lane));
  }
  static Mask from_bits(std::uint32_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i all = _mm256_set1_epi64x(bits);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, lane), lane));
  }
  static std::uint32_t to_bits(Mask m) { return static_cast<std::uint32_t>(_mm256_movemask_pd(m)); }
  static Mask less(Vector a, Vector b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
  static Mask equal(Vector a, Vector b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
  static Vector select(Mask m, Vector yes, Vector no) { return _mm256_blendv_pd(no, yes, m); }
  static Vector zero_where(Mask m, Vector x) { return _mm256_andnot_pd(m, x); }
  static double sum(Vector a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static double largest(Vector a) {
    const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
  }
};

#else  // baseline x86-64: SSE2, no fused multiply-add

template <>
struct Simd<float> {
  using Vector = __m128;
  using Mask = __m128;
  static constexpr Index lanes = 4;
  static Vector broadcast(float x) { return _mm_set1_ps(x); }
  static Vector zero() { return _mm_setzero_ps(); }
  static Vector load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm_storeu_ps(p, x); }
  static Vector load_first(const float* p, Index n) {
    float x[lanes] = {};
    for (Index i = 0; i < n; ++i) x[i] = p[i];
    return load(x);
  }
  static void store_first(float* p, Vector v, Index n) {
    float x[lanes];
    store(x, v);
    for (Index i = 0; i < n; ++i) p[i] = x[i];
  }
  static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
  static Vector max(Vector a, Vector b) { return _mm_max_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm_min_ps(a, b); }
  static Vector sqrt(Vector a) { return _mm_sqrt_ps(a); }
  static Vector abs(Vector a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    return _mm_or_ps(abs(magnitude), _mm_and_ps(_mm_set1_ps(-0.0f), sign));
  }
  static Vector round(Vector a) {  // |a| < 2^22
    const Vector magic = broadcast(12582912.0f);
    return (a + magic) - magic;
  }
  static constexpr float integer_shift = 12582912.0f + 127.0f;  // as with AVX2
  static Vector power_of_shifted(Vector sum) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(sum), 23));
  }
  static Vector power_of_two(Vector n) { return power_of_shifted(n + broadcast(integer_shift)); }
  static Vector ldexp(Vector x, Vector n) {
    const Vector half = round(n * broadcast(0.5f));
    return x * power_of_two(half) * power_of_two(n - half);
  }
  static Mask first(Index n) {
    const __m128i lane = _mm_setr_epi32(0, 1, 2, 3);
    return _mm_castsi128_ps(_mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), lane));
  }
  static Mask from_bits(std::uint32_t bits) {
    const __m128i lane = _mm_setr_epi32(1, 2, 4, 8);
    const __m128i all = _mm_set1_epi32(static_cast<int>(bits));
    return _mm_castsi128_ps(_mm_cmpeq_epi32(_mm_and_si128(all, lane), lane));
  }
  static std::uint32_t to_bits(Mask m) { return static_cast<std::uint32_t>(_mm_movemask_ps(m)); }
  static Mask less(Vector a, Vector b) { return _mm_cmplt_ps(a, b); }
  static Mask equal(Vector a, Vector b) { return _mm_cmpeq_ps(a, b); }
  static Vector select(Mask m, Vector yes, Vector no) {
    return _mm_or_ps(_mm_and_ps(m, yes), _mm_andnot_ps(m, no));
  }
  static Vector zero_where(Mask m, Vector x) { return _mm_andnot_ps(m, x); }
  static float sum(Vector a) {
    const __m128 two = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
  static float largest(Vector a) {
    const __m128 two = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
  }
};

template <>
struct Simd<double> {
  using Vector = __m128d;
  using Mask = __m128d;
  static constexpr Index lanes = 2;
  static Vector broadcast(double x) { return _mm_set1_pd(x); }
  static Vector zero() { return _mm_setzero_pd(); }
  static Vector load(const double* p) { return _mm_loadu_pd(p); }
  static void store(double* p, Vector x) { _mm_storeu_pd(p, x); }
  static Vector load_first(const double* p, Index n) {
    return n <= 0 ? zero() : n == 1 ? _mm_load_sd(p) : load(p);
  }
  static void store_first(double* p, Vector x, Index n) {
    if (n == 1) _mm_store_sd(p, x);
    if (n >= 2) store(p, x);
  }
  static Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
  static Vector max(Vector a, Vector b) { return _mm_max_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm_min_pd(a, b); }
  static Vector sqrt(Vector a) { return _mm_sqrt_pd(a); }
  static Vector abs(Vector a) { return _mm_andnot_pd(_mm_set1_pd(-0.0), a); }
  static Vector copy_sign(Vector magnitude, Vector sign) {
    return _mm_or_pd(abs(magnitude), _mm_and_pd(_mm_set1_pd(-0.0), sign));
  }
  static Vector round(Vector a) {  // |a| < 2^51
    const Vector magic = broadcast(6755399441055744.0);
    return (a + magic) - magic;
  }
  static constexpr double integer_shift = 6755399441055744.0 + 1023.0;
  static Vector power_of_shifted(Vector sum) {
    return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(sum), 52));
  }
  static Vector power_of_two(Vector n) { return power_of_shifted(n + broadcast(integer_shift)); }
  static Vector ldexp(Vector x, Vector n) {
    const Vector half = round(n * broadcast(0.5));
    return x * power_of_two(half) * power_of_two(n - half);
  }
  static Mask first(Index n) { return from_bits(n <= 0 ? 0u : n == 1 ? 1u : 3u); }
  static Mask from_bits(std::uint32_t bits) {
    return _mm_castsi128_pd(_mm_set_epi64x(bits & 2u ? -1 : 0, bits & 1u ? -1 : 0));
  }
  static std::uint32_t to_bits(Mask m) { return static_cast<std::uint32_t>(_mm_movemask_pd(m)); }
  static Mask less(Vector a, Vector b) { return _mm_cmplt_pd(a, b); }
  static Mask equal(Vector a, Vector b) { return _mm_cmpeq_pd(a, b); }
  static Vector select(Mask m, Vector yes, Vector no) {
    return _mm_or_pd(_mm_and_pd(m, yes), _mm_andnot_pd(m, no));
  }
  static Vector zero_where(Mask m, Vector x) { return _mm_andnot_pd(m, x); }
  static double sum(Vector a) { return _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a))); }
  static double largest(Vector a) { return _mm_cvtsd_f64(_mm_max_sd(a, _mm_unpackhi_pd(a, a))); }
};

#endif

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
