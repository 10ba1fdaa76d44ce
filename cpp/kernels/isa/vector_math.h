#pragma once

// Elementary functions of whole vectors. The error of each is stated and asserted by tests/test_kernels.py.
// Polynomials are near-minimax fits on the reduced interval (Chebyshev expansion in 40-digit arithmetic).

#include <cstddef>
#include <utility>

#include "kernels/isa/simd.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

// Horner: c[0] + c[1] x + ... + c[n-1] x^(n-1), unrolled.
template <class T, std::size_t n, std::size_t... i>
inline typename Simd<T>::Vector horner(typename Simd<T>::Vector x, const T (&c)[n],
                                       std::index_sequence<i...>) {
  using S = Simd<T>;
  typename S::Vector y = S::broadcast(c[n - 1]);
  ((y = S::fma(y, x, S::broadcast(c[n - 2 - i]))), ...);
  return y;
}

template <class T, std::size_t n>
inline typename Simd<T>::Vector polynomial(typename Simd<T>::Vector x, const T (&c)[n]) {
  return horner<T>(x, c, std::make_index_sequence<n - 1>{});
}

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // 2^r on |r| <= 1/2, and (e^r - 1 - r) / r^2 on |r| <= ln(2)/2: powers right to 2.6e-9 before rounding.
  static constexpr float exp2[] = {1.0f,           0.693147207f,   0.240226509f,   0.0555032657f,
                                   0.00961805611f, 0.00134006902f, 0.000154616715f};
  static constexpr float exp_tail[] = {0.500000005f, 0.166664135f, 0.0416663504f, 0.00837529015f,
                                       0.00139413130f};
  static constexpr float log2_e = 1.44269504f, ln2_high = 0.693145752f,
                         ln2_low = 1.42860677e-6f;  // high: 17 bits
  static constexpr float lowest = -104.0f, highest = 89.0f, lowest_normal = -87.3365402f,
                         exponent_min = -126.0f, tanh_is_one = 10.0f;
};

template <>
struct ExpConstants<double> {
  // Both to 4.4e-18 before rounding.
  static constexpr double exp2[] = {1.0,
                                    0.69314718055994530925,
                                    0.24022650695910161308,
                                    0.055504108664821627968,
                                    0.0096181291075866078629,
                                    0.0013333558146406124872,
                                    0.00015403530464553226693,
                                    0.000015252733841998575607,
                                    1.3215432110457634247e-6,
                                    1.0178056860960079893e-7,
                                    7.0742697874899043671e-9,
                                    4.4558581456653995736e-10};
  static constexpr double exp_tail[] = {0.50000000000000187479,     0.16666666666666681084,
                                        0.041666666666485284809,    0.0083333333333193844737,
                                        0.0013888888953062143441,   0.00019841269890621825951,
                                        0.000024801484683874898377, 2.7557240304585368334e-6,
                                        2.7632934512696380806e-7,   2.5110264356893360632e-8};
  static constexpr double log2_e = 1.4426950408889634074, ln2_high = 0.69314718036912381649,
                          ln2_low = 1.9082149292705877e-10;  // high: 32 bits
  static constexpr double lowest = -746.0, highest = 710.0, lowest_normal = -708.39641853226408,
                          exponent_min = -1022.0, tanh_is_one = 20.0;
};

// x becomes 2^(x factor), for x <= 0 or NaN and factor > 0; results below the smallest normal number are
// zero. Within 2 ulp in both types. Several vectors go side by side, step by step: one alone would wait for
// each of its multiply-adds.
template <class T, int count>
inline void exp2_nonpositive(typename Simd<T>::Vector (&x)[count], typename Simd<T>::Vector factor) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  constexpr int degree = sizeof(C::exp2) / sizeof(T) - 1;
  typename S::Vector integer[count], rest[count], y[count];
#if defined(BLASFORMER_ISA_avx512)
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    integer[i] = S::round(x[i] * factor);
    rest[i] = S::fma(x[i], factor, S::zero() - integer[i]);
  }
#else
  const auto shift = S::broadcast(S::integer_shift);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) integer[i] = S::fma(x[i], factor, shift);
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) rest[i] = S::fma(x[i], factor, shift - integer[i]);
#endif
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) y[i] = S::broadcast(C::exp2[degree]);
#pragma GCC unroll 16
  for (int c = degree - 1; c >= 0; --c) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) y[i] = S::fma(y[i], rest[i], S::broadcast(C::exp2[c]));
  }
  // What lies below becomes zero, whatever it is now (-inf has left a NaN).
  const auto lowest = S::broadcast(C::exponent_min) / factor;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
#if defined(BLASFORMER_ISA_avx512)
    y[i] = S::ldexp(y[i], integer[i]);
#else
    y[i] = y[i] * S::power_of_shifted(integer[i]);
#endif
    x[i] = S::zero_where(S::less(x[i], lowest), y[i]);
  }
}

template <class T>
inline typename Simd<T>::Vector exp2_nonpositive(typename Simd<T>::Vector x,
                                                 typename Simd<T>::Vector factor) {
  typename Simd<T>::Vector only[] = {x};
  exp2_nonpositive<T>(only, factor);
  return only[0];
}

// x = n ln(2) + r with an integer n and |r| <= ln(2)/2; ln(2) is taken off in two parts (Cody and Waite
// 1980).
template <class T>
struct ReducedByLn2 {
  typename Simd<T>::Vector n, r;
};

template <class T>
inline ReducedByLn2<T> reduce_by_ln2(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const auto n = S::round(x * S::broadcast(C::log2_e));
  const auto high = S::fma(n, S::broadcast(-C::ln2_high), x);
  return {n, S::fma(n, S::broadcast(-C::ln2_low), high)};
}

// e^r for |r| <= ln(2)/2.
template <class T>
inline typename Simd<T>::Vector exp_of_reduced(typename Simd<T>::Vector r) {
  using S = Simd<T>;
  const auto one = S::broadcast(T(1));
  return S::fma(S::fma(polynomial<T>(r, ExpConstants<T>::exp_tail), r, one), r, one);
}

// e^x for every x. Within 2 ulp in both types, denormal results included where they are not flushed.
template <class T>
inline typename Simd<T>::Vector exp(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const auto bounded = S::min(S::broadcast(C::highest), S::max(S::broadcast(C::lowest), x));
  const auto [n, r] = reduce_by_ln2<T>(bounded);
  return S::ldexp(exp_of_reduced<T>(r), n);
}

// e^(x + low) for x <= 0 or NaN and |low| below an ulp of x; results below the smallest normal number are
// zero. Within 2 ulp in both types.
template <class T>
inline typename Simd<T>::Vector exp_nonpositive(typename Simd<T>::Vector x,
                                                typename Simd<T>::Vector low = Simd<T>::zero()) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const auto bounded = S::max(S::broadcast(C::lowest_normal), x);
  const auto [n, r] = reduce_by_ln2<T>(bounded);
#if defined(BLASFORMER_ISA_avx512)
  const auto y = S::ldexp(exp_of_reduced<T>(r + low), n);
#else
  const auto y = exp_of_reduced<T>(r + low) * S::power_of_two(n);
#endif
  return S::select(S::less(x, S::broadcast(C::lowest_normal)), S::zero(), y);
}

// tanh x = e / (e + 2) with e = e^(2|x|) - 1 = 2^n (e^r - 1) + (2^n - 1), which loses nothing near zero; odd
// in every bit. Within 3 ulp in both types.
template <class T>
inline typename Simd<T>::Vector tanh(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using C = ExpConstants<T>;
  const auto one = S::broadcast(T(1));
  const auto bounded = S::min(S::broadcast(C::tanh_is_one), S::abs(x));
  const auto [n, r] = reduce_by_ln2<T>(bounded + bounded);
  const auto power = S::ldexp(one, n);
  const auto e = S::fma(power, S::fma(r * r, polynomial<T>(r, C::exp_tail), r), power - one);
  return S::copy_sign(e / (e + S::broadcast(T(2))), x);
}

// x / (1 + e^-z): the logistic sigmoid of z times x.
template <class T>
inline typename Simd<T>::Vector times_sigmoid(typename Simd<T>::Vector x, typename Simd<T>::Vector z) {
  using S = Simd<T>;
  return x / (S::broadcast(T(1)) + exp<T>(S::zero() - z));
}

struct SineCosine {
  Simd<double>::Vector sine, cosine;
};

// |x| <= 2^20, where the reduction by pi/2 in three parts is exact enough. Within 3 ulp.
constexpr double kLargestReducibleAngle = 1048576.0;

inline SineCosine sine_cosine(Simd<double>::Vector x) {
  using S = Simd<double>;
  static constexpr double two_over_pi = 0.63661977236758134308;
  static constexpr double half_pi[] = {0x1.921fb544p+0, 0x1.0b4611a6p-34,
                                       0x1.3198a2e037073p-69};  // 33 bits, 33 bits, the rest
  static constexpr double sine_tail[] = {-0.16666666666666666666,    0.0083333333333333314916,
                                         -0.00019841269841265063715, 2.7557319219338108556e-6,
                                         -2.5052106232052360918e-8,  1.6058531552749396893e-10,
                                         -7.5866930366975568285e-13};
  static constexpr double cosine_tail[] = {0.041666666666666666666,    -0.0013888888888888887865,
                                           0.000024801587301584645679, -2.7557319221402191753e-7,
                                           2.0876755790846799385e-9,   -1.1470460848781882016e-11,
                                           4.7458695249154930664e-14};
  const auto n = S::round(x * S::broadcast(two_over_pi));
  auto r = x;
  for (double part : half_pi) r = S::fma(n, S::broadcast(-part), r);
  const auto square = r * r;
  const auto one = S::broadcast(1.0);
  const auto sine = S::fma(r * square, polynomial<double>(square, sine_tail), r);
  const auto cosine =
      S::fma(square * square, polynomial<double>(square, cosine_tail), one - S::broadcast(0.5) * square);

  // Quarter turns: n - 4 round(n/4) is -2, -1, 0, 1 or 2. Odd ones exchange sine and cosine.
  const auto turn = n - S::broadcast(4.0) * S::round(n * S::broadcast(0.25));
  const auto odd = S::equal(S::abs(turn), one);
  const auto half_turn = S::equal(S::abs(turn), S::broadcast(2.0));
  const auto minus = S::broadcast(-1.0);
  const auto sine_sign = S::select(half_turn, minus, S::select(S::equal(turn, minus), minus, one));
  const auto cosine_sign = S::select(half_turn, minus, S::select(S::equal(turn, one), minus, one));
  return {sine_sign * S::select(odd, cosine, sine), cosine_sign * S::select(odd, sine, cosine)};
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
