#pragma once

#include "core/index.h"
#include "kernels/elements.h"

namespace blasformer {

// softmax: y[i] = e^(x[i] - m) / sum_j e^(x[j] - m) with m the largest of the row; log_softmax: its
// logarithm. x and y are (rows, length); y may be x. A row that holds NaN or +inf, or nothing but -inf,
// becomes NaN.
template <class T>
void softmax(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y);
template <class T>
void log_softmax(const Elements<T>& x, Index rows, Index length, const MutableElements<T>& y);

// The same for dense arrays.
template <class T>
void softmax(const T* x, Index rows, Index length, T* y) {
  softmax(Elements<T>(x), rows, length, MutableElements<T>(y));
}
template <class T>
void log_softmax(const T* x, Index rows, Index length, T* y) {
  log_softmax(Elements<T>(x), rows, length, MutableElements<T>(y));
}

}  // namespace blasformer
