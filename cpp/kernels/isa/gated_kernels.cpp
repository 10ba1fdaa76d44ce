#include "kernels/gated_kernels.h"

#include "kernels/isa/activation_functions.h"
#include "kernels/isa/rows.h"
#include "kernels/isa/table.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

template <class T, class Activation>
void gated(const T* gate, const T* up, Index size, T* y) {
  for_each_vector<T>(size, [=](Index i, Index n) {
    store_lanes(y + i, Activation::value(load_lanes(gate + i, n)) * load_lanes(up + i, n), n);
  });
}

template <class T, class Activation>
void gated_backward(const T* gate, const T* up, const T* d_y, Index size, T* y, T* d_gate, T* d_up) {
  for_each_vector<T>(size, [=](Index i, Index n) {
    const auto [value, slope] = Activation::value_and_slope(load_lanes(gate + i, n));
    const auto factor = load_lanes(up + i, n), d = load_lanes(d_y + i, n);
    store_lanes(y + i, value * factor, n);
    store_lanes(d_gate + i, slope * (factor * d), n);
    store_lanes(d_up + i, value * d, n);
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

template <>
const GatedKernels<float>& table() {
  return kGatedKernels<float>;
}
template <>
const GatedKernels<double>& table() {
  return kGatedKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
