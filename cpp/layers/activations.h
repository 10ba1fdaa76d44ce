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

// d_x[i] = d_y[i] activation'(x[i]); d_x may be d_y. relu'(0) is 0, and what is closed passes nothing, not
// even NaN.
template <class T>
void activate_backward(Activation activation, const Elements<T>& x, const Elements<T>& d_y, Index size,
                       const MutableElements<T>& d_x);

// The same for dense arrays. y, if given, receives activation(x), in the same bits as from activate, for
// those who kept x alone; it may be x.
template <class T>
void activate_backward(Activation activation, const T* x, const T* d_y, Index size, T* d_x, T* y = nullptr);

}  // namespace blasformer
