#pragma once

#include "core/index.h"

namespace blasformer {

// softmax: y[i] = e^(x[i] - m) / sum_j e^(x[j] - m) with m the largest of the row; log_softmax: its logarithm.
// x and y are (rows, length), dense; y may be x. A row that holds NaN or +inf, or nothing but -inf, becomes NaN.
template <class T>
void softmax(const T* x, Index rows, Index length, T* y);
template <class T>
void log_softmax(const T* x, Index rows, Index length, T* y);

}  // namespace blasformer
