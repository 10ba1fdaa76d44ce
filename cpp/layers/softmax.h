#pragma once

#include "core/array_view.h"
#include "core/index.h"

namespace blasformer {

// softmax: y[i] = e^(x[i] - m) / sum_j e^(x[j] - m) along an axis, with m the largest element; log_softmax:
// its logarithm. x and y have one shape and type, which is_computed_in<T>, and any strides; y may be x. Where
// there are NaN or +inf, or nothing but -inf, along the axis, y is NaN.
template <class T>
void softmax(const ArrayView& x, int axis, const MutableArrayView& y);
template <class T>
void log_softmax(const ArrayView& x, int axis, const MutableArrayView& y);

// The same for the rows of dense arrays, (rows, length).
template <class T>
void softmax(const T* x, Index rows, Index length, T* y);
template <class T>
void log_softmax(const T* x, Index rows, Index length, T* y);

// The gradients, from the result y: d_x = y (d_y - sum_j y[j] d_y[j]), and d_x = d_y - e^y sum_j d_y[j]. The
// arrays have one shape and type, as above; d_x may be d_y.
template <class T>
void softmax_backward(const ArrayView& y, const ArrayView& d_y, int axis, const MutableArrayView& d_x);
template <class T>
void log_softmax_backward(const ArrayView& y, const ArrayView& d_y, int axis, const MutableArrayView& d_x);

// The same for the rows of dense arrays, (rows, length).
template <class T>
void softmax_backward(const T* y, const T* d_y, Index rows, Index length, T* d_x);
template <class T>
void log_softmax_backward(const T* y, const T* d_y, Index rows, Index length, T* d_x);

}  // namespace blasformer
