#pragma once

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/elements.h"
#include "layers/initialiser.h"

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
  };

  LayerNorm(Shape normalized_shape, double eps = 1e-5, bool with_weight = true, bool with_bias = true);

  void initialise(Initialiser& random);  // ones and zeros
  Tensor<T> forward(const Tensor<T>& x, Saved* saved = nullptr) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    if (!self.weight.empty()) visit("weight", self.weight);
    if (!self.bias.empty()) visit("bias", self.bias);
  }
};

}  // namespace blasformer
