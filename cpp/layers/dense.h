#pragma once

#include "core/array_view.h"
#include "core/tensor.h"
#include "layers/row_blocks.h"

namespace blasformer {

inline Index element_count(const ArrayView& view) {
  Index count = 1;
  for (int axis = 0; axis < view.rank; ++axis) count *= view.shape[axis];
  return count;
}

// All elements of an array in row-major order, as T: the array's own memory if it is dense and of that type,
// otherwise a copy.
template <class T>
class Dense {
 public:
  explicit Dense(const ArrayView& view) {
    const Elements<T> elements(view);
    const Index size = element_count(view);
    data_ = elements.in_place();
    if (data_) return;
    copy_ = Tensor<T>({size});
    data_ = copy_.data();
    for_each_row_block(elements, size, 1, MutableElements<T>(copy_.data()), 0.5,
                       [](const T*, Index, Index, T*) {});
  }
  const T* data() const { return data_; }

 private:
  Tensor<T> copy_;
  const T* data_;
};

}  // namespace blasformer
