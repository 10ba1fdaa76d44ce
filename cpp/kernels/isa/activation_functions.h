#pragma once

// The activation functions of layers/activations.h on whole vectors: value(x), and with it, in the same bits,
// the derivative. Where x is infinite the derivative is its limit, and where x is NaN so is either but for
// the slope of relu, which is 1.

#include "kernels/isa/normal_distribution.h"
#include "kernels/isa/normal_pieces.h"
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
    const Vector y = value(x);
    return {y, S::select(S::equal(y, S::zero()), S::zero(), S::broadcast(T(1)))};
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
    const Vector e = exp<T>(S::zero() - Z::value(x)), s = one / (one + e);
    const Vector rest = S::select(S::less(one, e), one - s, e * s);  // 1 - s, as accurate as s
    // Beyond these bounds s (1 - s) is 0, which must not meet the infinity of an overflow.
    const Vector bound = S::broadcast(T(1000)), bounded = S::min(bound, S::max(S::zero() - bound, x));
    return {x / (one + e), S::fma(bounded * Z::slope(bounded), s * rest, s)};
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

template <class T>
struct Gelu {
  using Vector = typename Simd<T>::Vector;
  static Vector value(Vector x) { return times_normal_cdf<T>(x, normal_tail<T>(x)); }
  static ValueAndSlope<T> value_and_slope(Vector x) {
    const NormalTail<T> tail = normal_tail<T>(x);
    return {times_normal_cdf<T>(x, tail), times_normal_cdf_slope<T>(x, tail)};
  }
};

#if defined(BLASFORMER_ISA_avx512)
template <>
struct Gelu<float> {
  using S = Simd<float>;
  using Vector = S::Vector;
  static Vector value(Vector x) {
    const PlaceInPieces place = place_in_pieces(x);
    const Vector y = times_normal_cdf(x, place);
    if (place.beyond == 0) [[likely]]
      return y;
    return S::select(place.beyond, times_normal_cdf<float>(x, normal_tail<float>(x)), y);
  }
  static ValueAndSlope<float> value_and_slope(Vector x) {
    const PlaceInPieces place = place_in_pieces(x);
    const Vector y = times_normal_cdf(x, place), slope = times_normal_cdf_slope(x, place);
    if (place.beyond == 0) [[likely]]
      return {y, slope};
    const NormalTail<float> tail = normal_tail<float>(x);
    return {S::select(place.beyond, times_normal_cdf<float>(x, tail), y),
            S::select(place.beyond, times_normal_cdf_slope<float>(x, tail), slope)};
  }
};
#endif

}  // namespace
}  // namespace blasformer::BLASFORMER_ISA
