#pragma once

// The standard normal distribution function Phi and its density, for GELU.

#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct NormalTailConstants;

template <>
struct NormalTailConstants<float> {
  // Phi(-a) e^(a^2/2) / t as a polynomial in 1 - 2 t, where t = 3 / (a + 3), on 0 <= a <= 13.5: to 1.2e-9.
  static constexpr float is_zero = 13.5f, split = 4097.0f;
  static constexpr float ratio[] = {0.243027897f,    -0.169777331f,  0.0766725677f,   -0.0157542083f,
                                    -0.00348751818f, 0.00232295086f, 0.000341607067f, -0.000343748386f,
                                    -8.14547324e-5f, 4.33213596e-5f, 1.78859672e-5f};
};

template <>
struct NormalTailConstants<double> {
  // The same on 0 <= a <= 39, to 3.4e-17.
  static constexpr double is_zero = 39.0, split = 134217729.0;
  static constexpr double ratio[] = {
      0.2430278967111243298,      -0.16977732730582994174,    0.076672573324868616782,
      -0.015754341714310858229,   -0.0034876223411407669146,  0.002324207079725710637,
      0.00034253075376410344778,  -0.00034860953421105638862, -0.000085525122605078530285,
      0.000051464761661005750159, 0.00002627093124522755257,  -4.4150062579743707952e-6,
      -6.8965251119314216063e-6,  -1.1738295098637534891e-6,  1.21370579485066099e-6,
      7.5525928958882151549e-7,   2.0305404948360848038e-9,   -2.0264235760177501087e-7,
      -9.0311497228227507965e-8,  1.9212181581656691214e-8,   3.1179005857111565337e-8,
      5.3222430302744711432e-9,   -4.2692652745728611399e-9,  -1.5359004281429970225e-9};
};

// Phi(-|x|) = ratio * decay, where decay = e^(-x^2 / 2) is the density but for its factor.
template <class T>
struct NormalTail {
  typename Simd<T>::Vector magnitude, ratio, decay;  // magnitude: |x|, or where the tail is zero if less
};

template <class T>
inline NormalTail<T> normal_tail(typename Simd<T>::Vector x) {
  using S = Simd<T>;
  using C = NormalTailConstants<T>;
  const auto a = S::min(S::broadcast(C::is_zero), S::abs(x));
  // a^2 = high^2 + rest, where high has half the bits of a and its square is exact (Veltkamp 1968).
  const auto shifted = a * S::broadcast(C::split);
  const auto high = shifted - (shifted - a);
  const auto rest = (a - high) * (a + high);
  const auto half = S::broadcast(T(-0.5)), three = S::broadcast(T(3));
  const auto decay = exp_nonpositive<T>(half * high * high, half * rest);
  const auto t = three / (a + three);
  const auto ratio = t * polynomial<T>(S::broadcast(T(1)) - (t + t), C::ratio);
  return {a, ratio, decay};
}

// x Phi(x), given the tail of x: x - x Phi(-x) for x >= 0 and x Phi(-|x|) for x < 0, so that small values
// keep their relative accuracy. Within 6 ulp in both types where the result is not denormal.
template <class T>
inline typename Simd<T>::Vector times_normal_cdf(typename Simd<T>::Vector x, const NormalTail<T>& tail) {
  using S = Simd<T>;
  return S::select(S::less(x, S::zero()), (x * tail.ratio) * tail.decay,
                   x - (tail.magnitude * tail.ratio) * tail.decay);
}

// The derivative of x Phi(x), Phi(x) + x e^(-x^2 / 2) / sqrt(2 pi). It and that of -x add up to 1.
template <class T>
inline typename Simd<T>::Vector times_normal_cdf_slope(typename Simd<T>::Vector x,
                                                       const NormalTail<T>& tail) {
  using S = Simd<T>;
  const auto density = S::broadcast(T(0.39894228040143267794));  // 1 / sqrt(2 pi), at 0
  const auto of_negative = (tail.ratio - tail.magnitude * density) * tail.decay;
  return S::select(S::less(x, S::zero()), of_negative, S::broadcast(T(1)) - of_negative);
}

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
