#pragma once

#include "core/index.h"

namespace blasformer {

// y = (x - mean) / sqrt(variance + eps) * weight + bias for each row of x (Ba, Kiros and Hinton 2016); the variance divides
// by features and is computed from the centred row. x and y are (rows, features), dense; y may be x. weight and bias are
// (features,) or null. mean and reciprocal_std, (rows,) or null, receive what backward needs.
template <class T>
void layer_norm(const T* x, Index rows, Index features, const T* weight, const T* bias, double eps, T* y,
                T* mean = nullptr, T* reciprocal_std = nullptr);

}  // namespace blasformer
