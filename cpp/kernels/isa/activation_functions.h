#pragma once

// The activation functions of layers/activations.h on whole vectors: value(x), and with it the derivative.

#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {
namespace {

template <class T>
struct ValueAndSlope {
  typename Simd<T>::Vector value, slope;
};

template <class T>
struct Relu {
  using S = Simd<T>;
  using Vector = typename S::Vector;
  static Vector value(Vector x) { return S::max(S::zero(), x); }  // NaN, the second operand, is returned
  static ValueAndSlope<T> value_and_slope(Vector x) {
    return {value(x), S::select(S::less(S::zero(), x), S::broadcast(T(1)), S::zero())};
  }
};

// x sigmoid(z(x)): the slope is s + x s (1 - s) z'(x), s = sigmoid(z(x)). Z gives z and its derivative.
template <class T, class Z>
struct TimesSigmoid {
  using S = Simd<T>;
  using Vector = typename S::Vector;
  static Vector value(Vector x) { return times_sigmoid<T>(x, Z::value(x)); }
  static ValueAndSlope<T> value_and_slope(Vector x) {
    const Vector one = S::broadcast(T(1));
    // Beyond these bounds s is 0 or 1 and its derivative 0, which would meet the infinity of an overflow.
    const Vector bound = S::broadcast(T(1000)), bounded = S::min(bound, S::max(S::zero() - bound, x));
    const Vector s = times_sigmoid<T>(one, Z::value(bounded));
    return {x * s, S::fma(bounded * (s * (one - s)), Z::slope(bounded), s)};
  }
};

template <class T>
struct SiluExponent {
  using Vector = typename Simd<T>::Vector;
  static Vector value(Vector x) { return x; }
  static Vector slope(Vector) { return Simd<T>::broadcast(T(1)); }
};

template <class T>
struct GeluSigmoidExponent {
  using Vector = typename Simd<T>::Vector;
  static Vector value(Vector x) { return Simd<T>::broadcast(T(1.702)) * x; }
  static Vector slope(Vector) { return Simd<T>::broadcast(T(1.702)); }
};

// x/2 (1 + tanh(u)) = x sigmoid(2 u).
template <class T>
struct GeluTanhExponent {
  using S = Simd<T>;
  using Vector = typename S::Vector;
  static constexpr double kSlope = 1.5957691216057307117, kCubic = kSlope * 0.044715;  // 2 sqrt(2/pi)
  static Vector value(Vector x) {
    return x * S::fma(S::broadcast(T(kCubic)), x * x, S::broadcast(T(kSlope)));
  }
  static Vector slope(Vector x) {
    return S::fma(S::broadcast(T(3 * kCubic)), x * x, S::broadcast(T(kSlope)));
  }
};

template <class T>
using Silu = TimesSigmoid<T, SiluExponent<T>>;
template <class T>
using GeluSigmoid = TimesSigmoid<T, GeluSigmoidExponent<T>>;
template <class T>
using GeluTanh = TimesSigmoid<T, GeluTanhExponent<T>>;

// x Phi(x), Phi the standard normal distribution function, and Phi(x) + x Phi'(x),
// Phi'(x) = e^(-x^2 / 2) / sqrt(2 pi).
template <class T>
struct Gelu {
  using S = Simd<T>;
  using C = NormalTailConstants<T>;
  using Vector = typename S::Vector;
  static Vector value(Vector x) { return times_normal_cdf<T>(x); }
  static ValueAndSlope<T> value_and_slope(Vector x) {
    const Vector bound = S::broadcast(C::is_zero), bounded = S::min(bound, S::max(S::zero() - bound, x));
    const Vector value = times_normal_cdf<T>(x);
    const Vector density = exp_nonpositive<T>(S::broadcast(T(-0.5)) * bounded * bounded) *
                           S::broadcast(T(0.39894228040143267794));  // 1 / sqrt(2 pi)
    const Vector a = S::abs(bounded), three = S::broadcast(T(3)), t = three / (a + three);
    const Vector smaller = t * polynomial<T>(S::broadcast(T(1)) - (t + t), C::ratio) *
                           (density * S::broadcast(T(2.5066282746310005024)));  // Phi(-|x|)
    const Vector cdf = S::select(S::less(x, S::zero()), smaller, S::broadcast(T(1)) - smaller);
    return {value, S::fma(bounded, density, cdf)};
  }
};

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
