#pragma once

// The standard normal distribution function Phi and its density, for GELU.

#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct NormalTailConstants;

template <>
struct NormalTailConstants<float> {
  // Phi(-a) e^(a^2/2) / t as a polynomial in 1 - 2 t, where t = pole / (a + pole), on 0 <= a <= is_zero: to
  // 9.6e-9. There a Phi(-a) is less than the smallest normal number.
  static constexpr float is_zero = 13.19f, pole = 3.5f;
  static constexpr float ratio[] = {0.212690308f,   -0.161589078f,   0.0901213579f,   -0.0331578077f,
                                    0.00497431043f, 0.00185423706f,  -0.00091183362f, -0.000141472234f,
                                    0.0001271584f,  0.0000354219923f};
  static constexpr float half_log2_e = 0.7213475f, half_log2_e_low = 9.62981496e-9f, split = 4097.0f;
};

template <>
struct NormalTailConstants<double> {
  // The same to 3.4e-17.
  static constexpr double is_zero = 37.62, pole = 3.0;
  static constexpr double ratio[] = {
      0.2430278967111243298,      -0.16977732730582994174,    0.076672573324868616782,
      -0.015754341714310858229,   -0.0034876223411407669146,  0.002324207079725710637,
      0.00034253075376410344778,  -0.00034860953421105638862, -0.000085525122605078530285,
      0.000051464761661005750159, 0.00002627093124522755257,  -4.4150062579743707952e-6,
      -6.8965251119314216063e-6,  -1.1738295098637534891e-6,  1.21370579485066099e-6,
      7.5525928958882151549e-7,   2.0305404948360848038e-9,   -2.0264235760177501087e-7,
      -9.0311497228227507965e-8,  1.9212181581656691214e-8,   3.1179005857111565337e-8,
      5.3222430302744711432e-9,   -4.2692652745728611399e-9,  -1.5359004281429970225e-9};
  static constexpr double half_log2_e = 0.7213475204444816935, half_log2_e_low = 1.0177636870465516e-17,
                          split = 134217729.0;
};

// e^(-a^2 / 2), given -a >= -is_zero.
template <class T>
inline typename Simd<T>::Vector normal_decay(typename Simd<T>::Vector minus_a) {
  using S = Simd<T>;
  using C = NormalTailConstants<T>;
#if defined(BLASFORMER_ISA_baseline)
  // a^2 = half^2 + rest, where half has half the bits of a and its square is exact (Veltkamp 1968).
  const auto shifted = minus_a * S::broadcast(C::split);
  const auto half = shifted - (shifted - minus_a);
  const auto rest = (minus_a - half) * (minus_a + half);
  const auto rate = S::broadcast(T(-0.5));
  return exp_nonpositive<T>(rate * half * half, rate * rest);
#else
  // a^2 = high + rest, exactly; the exponent of 2 is an integer n and |f| <= 1/2.
  const auto rate = S::broadcast(-C::half_log2_e), rate_low = S::broadcast(-C::half_log2_e_low);
  const auto high = minus_a * minus_a, rest = S::fma(minus_a, minus_a, -high);
  const auto n = S::round(high * rate);
  const auto f = S::fma(rest, rate, S::fma(high, rate_low, S::fma(high, rate, -n)));
  const auto power = polynomial<T>(f, ExpConstants<T>::exp2);
#if defined(BLASFORMER_ISA_avx512)
  return S::ldexp(power, n);
#else
  return power * S::power_of_two(n);
#endif
#endif
}

// Phi(-|x|) = ratio * decay, where decay = e^(-x^2 / 2) is the density but for its factor.
template <class T>
struct NormalTail {
  typename Simd<T>::Vector minus_magnitude, ratio, decay;  // -|x|, no further than to where decay is 0
};

template <class T>
inline NormalTail<T> normal_tail(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using C = NormalTailConstants<T>;
  const auto end = S::broadcast(-C::is_zero);
  const auto minus_a = S::max(end, S::copy_sign(x, end));  // the second operand is returned when it is NaN
  const auto decay = S::select(S::less(end, minus_a), normal_decay<T>(minus_a), S::zero());
  const auto pole = S::broadcast(C::pole), t = pole / (pole - minus_a);
  const auto ratio = t * polynomial<T>(S::fma(S::broadcast(T(-2)), t, S::broadcast(T(1))), C::ratio);
  return {minus_a, ratio, decay};
}

// x Phi(x), given the tail of x: x - x Phi(-x) for x >= 0 and x Phi(-|x|) for x < 0, so that small values
// keep their relative accuracy. Within 6 ulp in both types where the result is not denormal.
template <class T>
inline typename Simd<T>::Vector times_normal_cdf(typename Simd<T>::Vector x, const NormalTail<T>& tail) {
  using S = Simd<T>;
  // -|x|, bounded on one side alone: what PyTorch has of -inf is NaN.
  const auto minus_a = S::min(tail.minus_magnitude, x);
  return S::fma(minus_a * tail.ratio, tail.decay, S::max(S::zero(), x));
}

// The derivative of x Phi(x), Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi). It and that of -x add up to 1.
template <class T>
inline typename Simd<T>::Vector times_normal_cdf_slope(typename Simd<T>::Vector x,
                                                       const NormalTail<T>& tail) {
  using S = Simd<T>;
  const auto density = S::broadcast(T(0.39894228040143267794));  // 1 / sqrt(2 pi), at 0
  const auto of_negative = S::fma(tail.minus_magnitude, density, tail.ratio) * tail.decay;
  return S::select(S::less(x, S::zero()), of_negative, S::broadcast(T(1)) - of_negative);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
