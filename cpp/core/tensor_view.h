#pragma once

#include <algorithm>

#include "core/array_view.h"
#include "core/tensor.h"

namespace blasformer {

inline ArrayView readable(const MutableArrayView& view) {
  ArrayView same;
  same.data = view.data;
  same.dtype = view.dtype;
  same.rank = view.rank;
  std::copy_n(view.shape, kMaxRank, same.shape);
  std::copy_n(view.stride, kMaxRank, same.stride);
  return same;
}

template <class T>
MutableArrayView view_of(Tensor<T>& tensor) {
  MutableArrayView view;
  view.data = tensor.data();
  view.dtype = dtype_of<T>();
  view.rank = static_cast<int>(tensor.rank());
  Index stride = 1;
  for (int axis = view.rank; axis-- > 0;) {
    view.shape[axis] = tensor.extent(axis);
    view.stride[axis] = stride;
    stride *= tensor.extent(axis);
  }
  return view;
}

}  // namespace blasformer
