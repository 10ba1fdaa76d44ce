#pragma once

#include "core/index.h"

namespace blasformer {

// Operations on rows of dense arrays, and on single elements. y may be x.
template <class T>
struct RowKernels {
  // x and y (rows, length). See layers/softmax.h.
  using Normalise = void (*)(const T* x, Index rows, Index length, T* y);
  Normalise softmax, log_softmax;

  // The same along columns: element (i, c) is at i * stride + c, and each of the columns becomes a softmax.
  using NormaliseColumns = void (*)(const T* x, Index length, Index x_stride, Index columns, T* y,
                                    Index y_stride);
  NormaliseColumns softmax_columns, log_softmax_columns;

  // x and y (size,). See layers/activations.h.
  using Elementwise = void (*)(const T* x, Index size, T* y);
  Elementwise relu, gelu, gelu_tanh, gelu_sigmoid, silu;

  // x and y (rows, features); weight, bias, mean, reciprocal_std and reciprocal_rms may be null. See
  // layers/layer_norm.h and layers/rms_norm.h.
  void (*layer_norm)(const T* x, Index rows, Index features, const T* weight, const T* bias, double eps, T* y,
                     T* mean, T* reciprocal_std);
  void (*rms_norm)(const T* x, Index rows, Index features, const T* weight, double eps, T* y,
                   T* reciprocal_rms);

  // y[r * y_stride + o] = sum_i x[r, i] weight[o, i] + bias[o]: x (rows, features), weight (outputs,
  // features) or, transposed, (features, outputs), with a stride; bias may be null; y is apart from the
  // others. Weights are not packed, which BLAS spends more time on than on the products of few rows: up to
  // `few_rows` it was found to be slower, for 256 features or more.
  Index few_rows;
  using FewRowsLinear = void (*)(const T* x, Index rows, Index features, const T* weight, Index weight_stride,
                                 const T* bias, Index outputs, T* y, Index y_stride);
  FewRowsLinear few_rows_linear, few_rows_linear_transposed;
  // The same for 1 to 4 rows, x_stride apart, with the bits of ProductKernels where the features are summed
  // in blocks of `block`.
  void (*ordered_linear)(const T* x, Index x_stride, Index rows, Index features, Index block, const T* weight,
                         Index weight_stride, const T* bias, Index outputs, T* y, Index y_stride);

  // cosine[i], sine[i] of position * frequency[i].
  void (*cosine_sine)(double position, const double* frequency, Index size, T* cosine, T* sine);

  // Rotates the pairs (x[2 i], x[2 i + 1]), or (x[i], x[i + pairs]), by the angles whose cosine and sine are
  // given.
  using Rotate = void (*)(const T* x, const T* cosine, const T* sine, Index pairs, T* y);
  Rotate rotate_interleaved, rotate_halves;
};

// Those of active_isa().
template <class T>
const RowKernels<T>& row_kernels();

}  // namespace blasformer
