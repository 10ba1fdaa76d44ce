#pragma once

#include "core/index.h"

namespace blasformer {

// Gradients of the operations of RowKernels. Arrays are dense; d_x may be any of the inputs that have its
// shape.
template <class T>
struct GradientKernels {
  // d_x[i] = d_y[i] f'(x[i]) and, unless y is null, y[i] = f(x[i]) in the same bits as RowKernels. y may be
  // x. See layers/activations.h.
  using Elementwise = void (*)(const T* x, const T* d_y, Index size, T* d_x, T* y);
  Elementwise relu, gelu, gelu_tanh, gelu_sigmoid, silu;

  // y, d_y and d_x (rows, length): y is what was computed forward. See layers/softmax.h.
  using Normalise = void (*)(const T* y, const T* d_y, Index rows, Index length, T* d_x);
  Normalise softmax, log_softmax;

  // The same along columns that lie side by side: element (i, c) of each array is at i * stride + c.
  using NormaliseColumns = void (*)(const T* y, const T* d_y, Index length, Index stride, Index columns,
                                    T* d_x);
  NormaliseColumns softmax_columns, log_softmax_columns;

  // x, d_y, residual and d_x (rows, features), residual being added to d_x; mean and the reciprocals (rows,);
  // weight (features,). What the rows give is added to d_weight and d_bias, (features,). weight, residual,
  // d_weight and d_bias may be null. See layers/layer_norm.h and layers/rms_norm.h.
  void (*layer_norm)(const T* x, const T* mean, const T* reciprocal_std, const T* d_y, Index rows,
                     Index features, const T* weight, const T* residual, T* d_x, T* d_weight, T* d_bias);
  void (*rms_norm)(const T* x, const T* reciprocal_rms, const T* d_y, Index rows, Index features,
                   const T* weight, const T* residual, T* d_x, T* d_weight);
};

// Those of active_isa().
template <class T>
const GradientKernels<T>& gradient_kernels();

}  // namespace blasformer
