#pragma once

#include <string>

#include "core/index.h"
#include "kernels/elements.h"

namespace blasformer {

// relu          max(x, 0)
// gelu          x Phi(x), Phi the standard normal distribution function (Hendrycks and Gimpel 2016)
// gelu_tanh     x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as in GPT-2
// gelu_sigmoid  x sigmoid(1.702 x), as in CLIP
// silu          x sigmoid(x)
enum class Activation { relu, gelu, gelu_tanh, gelu_sigmoid, silu };

// Throws std::invalid_argument that lists the names.
Activation activation_from_name(const std::string& name);

// y[i] = activation(x[i]) for size elements; y may be x.
template <class T>
void activate(Activation activation, const Elements<T>& x, Index size, const MutableElements<T>& y);

// The same for dense arrays.
template <class T>
void activate(Activation activation, const T* x, Index size, T* y) {
  activate(activation, Elements<T>(x), size, MutableElements<T>(y));
}

}  // namespace blasformer
