#pragma once

#include "core/index.h"

namespace blasformer {

// y = x weight^T + bias: x (rows, in_features), weight (out_features, in_features), bias (out_features,) or null,
// y (rows, out_features); dense, and y apart from the others.
template <class T>
void linear(const T* x, Index rows, Index in_features, const T* weight, const T* bias, Index out_features, T* y);

}  // namespace blasformer
