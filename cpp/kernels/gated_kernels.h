#pragma once

#include "core/index.h"

namespace blasformer {

// One activation function that gates: y[i] = activation(gate[i]) * up[i], and
// d_gate[i] = activation'(gate[i]) * up[i] * d_y[i], d_up[i] = activation(gate[i]) * d_y[i]. y may be one of the
// inputs, and so may d_gate and d_up, each another one.
template <class T>
struct GatedActivation {
  void (*forward)(const T* gate, const T* up, Index size, T* y);
  void (*backward)(const T* gate, const T* up, const T* d_y, Index size, T* d_gate, T* d_up);
};

// See layers/activations.h for the functions.
template <class T>
struct GatedKernels {
  GatedActivation<T> relu, gelu, gelu_tanh, gelu_sigmoid, silu;
};

// Those of active_isa().
template <class T>
const GatedKernels<T>& gated_kernels();

}  // namespace blasformer
