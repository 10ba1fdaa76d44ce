#pragma once

#include "core/index.h"
#include "core/tensor.h"
#include "kernels/elements.h"
#include "layers/initialiser.h"
#include "layers/write.h"

namespace blasformer {

// y = x / sqrt(mean(x^2) + eps) * weight for each row of x (Zhang and Sennrich 2019). x and y are (rows,
// features); y may be x. weight is (features,) or null. reciprocal_rms, (rows,) or null, receives what
// backward needs.
template <class T>
void rms_norm(const Elements<T>& x, Index rows, Index features, const T* weight, double eps,
              const MutableElements<T>& y, T* reciprocal_rms = nullptr);

// The same for dense arrays.
template <class T>
void rms_norm(const T* x, Index rows, Index features, const T* weight, double eps, T* y,
              T* reciprocal_rms = nullptr) {
  rms_norm(Elements<T>(x), rows, features, weight, eps, MutableElements<T>(y), reciprocal_rms);
}

// With x^ = x reciprocal_rms, what a row was normalised to, and g = d_y weight:
//   d_x = reciprocal_rms (g - x^ mean(g x^)) + residual
//   d_weight = sum of d_y x^ over the rows.
// residual, (rows, features) or null, is the gradient that went around. d_x may be d_y or residual. weight
// and d_weight may be null.
template <class T>
void rms_norm_backward(const Elements<T>& x, const T* reciprocal_rms, const Elements<T>& d_y, Index rows,
                       Index features, const T* weight, const MutableElements<T>& d_x, T* d_weight,
                       Write write, const T* residual = nullptr);

// The same for dense arrays.
template <class T>
void rms_norm_backward(const T* x, const T* reciprocal_rms, const T* d_y, Index rows, Index features,
                       const T* weight, T* d_x, T* d_weight, Write write, const T* residual = nullptr) {
  rms_norm_backward(Elements<T>(x), reciprocal_rms, Elements<T>(d_y), rows, features, weight,
                    MutableElements<T>(d_x), d_weight, write, residual);
}

// Over the last axes of x, whose extents are normalized_shape.
template <class T>
struct RMSNorm {
  using Scalar = T;
  Shape normalized_shape;
  double eps;
  Tensor<T> weight;  // normalized_shape, or empty

  struct Saved {
    Tensor<T> input;
    Tensor<T> reciprocal_rms;  // one for each row that was normalised

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(input);
      visit(reciprocal_rms);
    }
  };

  RMSNorm(Shape normalized_shape, double eps, bool with_weight = true);

  void initialise(Initialiser& random);  // ones
  Tensor<T> forward(const Tensor<T>& x, Saved* saved = nullptr, Tensor<T>* out = nullptr) const;
  // residual: the gradient that went around, added to that of x.
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, RMSNorm& gradients, Write write,
                     const Tensor<T>* residual = nullptr) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    if (!self.weight.empty()) visit("weight", self.weight);
  }
};

}  // namespace blasformer
