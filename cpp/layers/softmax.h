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

}  // namespace blasformer
