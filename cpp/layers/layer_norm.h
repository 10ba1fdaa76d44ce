#pragma once

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/elements.h"
#include "layers/initialiser.h"
#include "layers/write.h"

namespace blasformer {

// y = (x - mean) / sqrt(variance + eps) * weight + bias for each row of x (Ba, Kiros and Hinton 2016); the
// variance divides by features and is computed from the centred row. x and y are (rows, features); y may be
// x. weight and bias are (features,) or null. mean and reciprocal_std, (rows,) or null, receive what backward
// needs.
template <class T>
void layer_norm(const Elements<T>& x, Index rows, Index features, const T* weight, const T* bias, double eps,
                const MutableElements<T>& y, T* mean = nullptr, T* reciprocal_std = nullptr);

// The same for dense arrays.
template <class T>
void layer_norm(const T* x, Index rows, Index features, const T* weight, const T* bias, double eps, T* y,
                T* mean = nullptr, T* reciprocal_std = nullptr) {
  layer_norm(Elements<T>(x), rows, features, weight, bias, eps, MutableElements<T>(y), mean, reciprocal_std);
}

// With x^ = (x - mean) reciprocal_std, what a row was normalised to, and g = d_y weight:
//   d_x = reciprocal_std (g - mean(g) - x^ mean(g x^)) + residual
//   d_weight = sum of d_y x^ over the rows, d_bias = sum of d_y.
// residual, (rows, features) or null, is the gradient that went around. d_x may be d_y or residual. weight,
// d_weight and d_bias may be null.
template <class T>
void layer_norm_backward(const Elements<T>& x, const T* mean, const T* reciprocal_std, const Elements<T>& d_y,
                         Index rows, Index features, const T* weight, const MutableElements<T>& d_x,
                         T* d_weight, T* d_bias, Write write, const T* residual = nullptr);

// The same for dense arrays.
template <class T>
void layer_norm_backward(const T* x, const T* mean, const T* reciprocal_std, const T* d_y, Index rows,
                         Index features, const T* weight, T* d_x, T* d_weight, T* d_bias, Write write,
                         const T* residual = nullptr) {
  layer_norm_backward(Elements<T>(x), mean, reciprocal_std, Elements<T>(d_y), rows, features, weight,
                      MutableElements<T>(d_x), d_weight, d_bias, write, residual);
}

// Over the last axes of x, whose extents are normalized_shape.
template <class T>
struct LayerNorm {
  using Scalar = T;
  Shape normalized_shape;
  double eps;
  Tensor<T> weight, bias;  // normalized_shape, or empty

  struct Saved {
    Tensor<T> input;
    Tensor<T> mean, reciprocal_std;  // one for each row that was normalised

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(input);
      visit(mean);
      visit(reciprocal_std);
    }
  };

  LayerNorm(Shape normalized_shape, double eps = 1e-5, bool with_weight = true, bool with_bias = true);

  void initialise(Initialiser& random);  // ones and zeros
  Tensor<T> forward(const Tensor<T>& x, Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  // residual: the gradient that went around, added to that of x.
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, LayerNorm& gradients, Write write,
                     const Tensor<T>* residual = nullptr) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    if (!self.weight.empty()) visit("weight", self.weight);
    if (!self.bias.empty()) visit("bias", self.bias);
  }
};

}  // namespace blasformer
