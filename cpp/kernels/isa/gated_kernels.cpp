#include "kernels/gated_kernels.h"

#include "kernels/isa/activation_functions.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

// step(i, n) for whole vectors, elements i .. i + n - 1, and for what remains.
template <class T, class Step>
inline void for_each_vector(Index size, Step step) {
  constexpr Index lanes = Simd<T>::lanes;
  Index i = 0;
  for (; i + lanes <= size; i += lanes) step(i, lanes);
  if (i < size) step(i, size - i);
}

template <class T>
inline typename Simd<T>::Vector load(const T* x, Index n) {
  return n == Simd<T>::lanes ? Simd<T>::load(x) : Simd<T>::load_first(x, n);
}

template <class T>
inline void store(T* y, typename Simd<T>::Vector v, Index n) {
  n == Simd<T>::lanes ? Simd<T>::store(y, v) : Simd<T>::store_first(y, v, n);
}

template <class T, class Activation>
void gated(const T* gate, const T* up, Index size, T* y) {
  for_each_vector<T>(size, [=](Index i, Index n) {
    store(y + i, Activation::value(load(gate + i, n)) * load(up + i, n), n);
  });
}

template <class T, class Activation>
void gated_backward(const T* gate, const T* up, const T* d_y, Index size, T* d_gate, T* d_up) {
  for_each_vector<T>(size, [=](Index i, Index n) {
    const auto [value, slope] = Activation::value_and_slope(load(gate + i, n));
    const auto d = load(d_y + i, n), factor = load(up + i, n);
    store(d_gate + i, slope * (factor * d), n);
    store(d_up + i, value * d, n);
  });
}

template <class T, class Activation>
constexpr GatedActivation<T> kGated = {gated<T, Activation>, gated_backward<T, Activation>};

template <class T>
constexpr GatedKernels<T> kGatedKernels = {
    .relu = kGated<T, Relu<T>>,
    .gelu = kGated<T, Gelu<T>>,
    .gelu_tanh = kGated<T, GeluTanh<T>>,
    .gelu_sigmoid = kGated<T, GeluSigmoid<T>>,
    .silu = kGated<T, Silu<T>>,
};

}  // namespace

template <class T>
const GatedKernels<T>& gated_kernels();

template <>
const GatedKernels<float>& gated_kernels() {
  return kGatedKernels<float>;
}
template <>
const GatedKernels<double>& gated_kernels() {
  return kGatedKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
