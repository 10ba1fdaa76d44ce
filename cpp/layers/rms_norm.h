#pragma once

#include "core/index.h"

namespace blasformer {

// y = x / sqrt(mean(x^2) + eps) * weight for each row of x (Zhang and Sennrich 2019). x and y are (rows, features), dense;
// y may be x. weight is (features,) or null. reciprocal_rms, (rows,) or null, receives what backward needs.
template <class T>
void rms_norm(const T* x, Index rows, Index features, const T* weight, double eps, T* y, T* reciprocal_rms = nullptr);

}  // namespace blasformer
