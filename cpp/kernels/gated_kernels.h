#pragma once

#include "core/index.h"

namespace blasformer {

// One activation function that gates: y[i] = activation(gate[i]) * up[i]. Backward computes y again with
// d_gate[i] = activation'(gate[i]) * up[i] * d_y[i] and d_up[i] = activation(gate[i]) * d_y[i]. Each result
// may be in the place of an input.
template <class T>
struct GatedActivation {
  void (*forward)(const T* gate, const T* up, Index size, T* y);
  void (*backward)(const T* gate, const T* up, const T* d_y, Index size, T* y, T* d_gate, T* d_up);
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
