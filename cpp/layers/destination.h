#pragma once

#include <utility>

#include "core/tensor.h"

namespace blasformer {

// Memory for a result: `out` if the caller has given it and it is of that shape, otherwise new. A layer
// writes to `out`, which lies apart from its inputs, in its last step only, when attention has read all
// masks.
template <class T>
Tensor<T> memory_for(Shape shape, const Tensor<T>* out) {
  if (out != nullptr && out->shape() == shape) return *out;
  return Tensor<T>(std::move(shape));
}

}  // namespace blasformer
