#include "kernels/optimiser_kernels.h"

#include "kernels/isa/simd.h"
#include "kernels/isa/table.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T>
using Vector = typename Simd<T>::Vector;

// Squares of floats are exact in double and cannot overflow there. The number of partial sums is fixed, and
// so is the order they are added in.
template <class T>
double sum_of_squares(const T* x, Index size) {
  constexpr Index kPartialSums = 32;
  double partial[kPartialSums] = {};
  Index i = 0;
  for (; i + kPartialSums <= size; i += kPartialSums) {
    for (Index lane = 0; lane < kPartialSums; ++lane) {
      const double value = static_cast<double>(x[i + lane]);
      partial[lane] = partial[lane] + value * value;
    }
  }
  for (Index lane = 0; i + lane < size; ++lane) {
    const double value = static_cast<double>(x[i + lane]);
    partial[lane] = partial[lane] + value * value;
  }
  for (Index width = kPartialSums / 2; width > 0; width /= 2) {
    for (Index lane = 0; lane < width; ++lane) partial[lane] += partial[lane + width];
  }
  return partial[0];
}

// update(load, store) once for each vector of elements: load(p) and store(p, x) access its part of the array
// p.
template <class T, class Update>
inline void for_each_vector(Index size, Update update) {
  using S = Simd<T>;
  Index i = 0;
  for (; i + S::lanes <= size; i += S::lanes) {
    update([i](const T* p) { return S::load(p + i); }, [i](T* p, Vector<T> x) { S::store(p + i, x); });
  }
  if (const Index rest = size - i; rest > 0) {
    update([i, rest](const T* p) { return S::load_first(p + i, rest); },
           [i, rest](T* p, Vector<T> x) { S::store_first(p + i, x, rest); });
  }
}

template <class T>
inline Vector<T> broadcast(double x) {
  return Simd<T>::broadcast(static_cast<T>(x));
}

template <class T>
void sgd(const SgdRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter) {
  using S = Simd<T>;
  const Vector<T> scale = S::broadcast(gradient_scale), decay = broadcast<T>(rule.weight_decay),
                  minus_lr = broadcast<T>(-rule.lr);
  for_each_vector<T>(size, [&](auto load, auto store) {
    const Vector<T> p = load(parameter);
    const Vector<T> g = S::fma(decay, p, scale * load(gradient));
    store(parameter, S::fma(minus_lr, g, p));
  });
}

template <class T>
void sgd_momentum(const SgdRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter,
                  T* momentum) {
  using S = Simd<T>;
  const Vector<T> scale = S::broadcast(gradient_scale), decay = broadcast<T>(rule.weight_decay),
                  minus_lr = broadcast<T>(-rule.lr), mu = broadcast<T>(rule.momentum);
  for_each_vector<T>(size, [&](auto load, auto store) {
    const Vector<T> p = load(parameter);
    const Vector<T> g = S::fma(decay, p, scale * load(gradient));
    const Vector<T> m = S::fma(mu, load(momentum), g);
    store(momentum, m);
    store(parameter, S::fma(minus_lr, rule.nesterov ? S::fma(mu, m, g) : m, p));
  });
}

template <class T>
void adam(const AdamRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter, T* mean,
          T* mean_square) {
  using S = Simd<T>;
  const Vector<T> scale = S::broadcast(gradient_scale),
                  decay = broadcast<T>(rule.decoupled_decay ? 0 : rule.weight_decay),
                  kept = broadcast<T>(rule.decoupled_decay ? 1 - rule.lr * rule.weight_decay : 1),
                  beta1 = broadcast<T>(rule.beta1), rest1 = broadcast<T>(1 - rule.beta1),
                  beta2 = broadcast<T>(rule.beta2), rest2 = broadcast<T>(1 - rule.beta2),
                  eps = broadcast<T>(rule.eps), minus_rate = broadcast<T>(-rule.lr / rule.bias_correction1),
                  correction2 = broadcast<T>(1 / rule.bias_correction2);
  for_each_vector<T>(size, [&](auto load, auto store) {
    const Vector<T> p = load(parameter);
    const Vector<T> g = S::fma(decay, p, scale * load(gradient));
    const Vector<T> m = S::fma(beta1, load(mean), rest1 * g);
    const Vector<T> v = S::fma(beta2, load(mean_square), rest2 * (g * g));
    store(mean, m);
    store(mean_square, v);
    store(parameter, S::fma(minus_rate, m / (S::sqrt(v * correction2) + eps), kept * p));
  });
}

template <class T>
void lion(const LionRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter, T* momentum) {
  using S = Simd<T>;
  const Vector<T> scale = S::broadcast(gradient_scale), kept = broadcast<T>(1 - rule.lr * rule.weight_decay),
                  lr = broadcast<T>(rule.lr), beta1 = broadcast<T>(rule.beta1),
                  rest1 = broadcast<T>(1 - rule.beta1), beta2 = broadcast<T>(rule.beta2),
                  rest2 = broadcast<T>(1 - rule.beta2);
  for_each_vector<T>(size, [&](auto load, auto store) {
    const Vector<T> g = scale * load(gradient), m = load(momentum);
    const Vector<T> direction = S::fma(beta1, m, rest1 * g);
    const Vector<T> move = S::select(S::equal(direction, S::zero()), S::zero(), S::copy_sign(lr, direction));
    store(parameter, kept * load(parameter) - move);
    store(momentum, S::fma(beta2, m, rest2 * g));
  });
}

template <class T>
constexpr OptimiserKernels<T> kOptimiserKernels = {
    .sum_of_squares = sum_of_squares<T>,
    .sgd = sgd<T>,
    .sgd_momentum = sgd_momentum<T>,
    .adam = adam<T>,
    .lion = lion<T>,
};

}  // namespace

template <>
const OptimiserKernels<float>& table() {
  return kOptimiserKernels<float>;
}
template <>
const OptimiserKernels<double>& table() {
  return kOptimiserKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
