#pragma once

// How the functions of arrays and their gradients read their arguments.

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "layers/activations.h"
#include "layers/dense.h"
#include "layers/row_blocks.h"

namespace blasformer::bindings {

// Work on fewer elements than this is over before another thread could use the interpreter lock.
constexpr Index kLeastElementsToRelease = 20'000;

// Calls function(T()) with the type that arrays of this dtype are computed in, without the interpreter lock.
template <class Function>
void compute(DType dtype, Index elements, Function function) {
  const ContextModes modes;
  std::optional<ReleaseGil> released;
  if (elements >= kLeastElementsToRelease) released.emplace();
  if (dtype == DType::float64) {
    function(double());
  } else {
    function(float());
  }
}

Shape shape_of(const ArrayView& view);
// Of the extents of axes [first_axis, last_axis).
Index product(const ArrayView& view, int first_axis, int last_axis);

Index integer(const py::object& argument, const char* name);

// An argument that belongs to another one: of its dtype.
ArrayView view_like(py::object& argument, const char* name, const ArrayView& other,
                    const char* other_name = "x");
// The gradient of a result, which has the dtype of x and that shape.
ArrayView gradient_view(py::object& argument, const Shape& shape, const ArrayView& x,
                        const char* x_name = "x");

int axis_of(const py::object& argument, const ArrayView& x, const char* x_name = "x");

Activation gelu_activation(const std::string& approximate);

// The arrays, which have one shape, with their axes in the order in which those of y lie in memory: any order
// serves single elements.
template <class... Views>
void sort_axes(MutableArrayView& y, Views&... others) {
  for (int i = 1; i < y.rank; ++i) {
    for (int j = i; j > 0 && std::abs(y.stride[j - 1]) < std::abs(y.stride[j]); --j) {
      const auto swap_axes = [j](auto& view) {
        std::swap(view.shape[j - 1], view.shape[j]);
        std::swap(view.stride[j - 1], view.stride[j]);
      };
      (swap_axes(others), ...);
      swap_axes(y);
    }
  }
}

// normalized_shape as an int or a sequence of ints; returns how many of the last axes of x it names.
int normalized_axes(const py::object& argument, const ArrayView& x);
double epsilon_of(const py::object& argument);
// What PyTorch takes where no eps is given: the distance from 1 to the next number of the dtype.
double machine_epsilon(DType dtype);
// The weight or bias of a norm, of the shape of the axes that are normalised.
std::optional<ArrayView> norm_parameter(py::object& argument, const char* name, const ArrayView& x, int axes);

template <class T>
std::optional<Dense<T>> dense(const std::optional<ArrayView>& view) {
  return view ? std::optional<Dense<T>>(*view) : std::nullopt;
}

template <class T>
const T* data_of(const std::optional<Dense<T>>& array) {
  return array ? array->data() : nullptr;
}

// Dense memory for a result: that of an array if it is dense and of type T, otherwise a buffer.
template <class T>
class DenseResult {
 public:
  explicit DenseResult(const MutableArrayView& array) : size_(1), elements_(array) {
    for (int axis = 0; axis < array.rank; ++axis) size_ *= array.shape[axis];
    if (!elements_.is_dense()) buffer_ = Tensor<T>({size_});
  }
  T* data() { return elements_.place(0, buffer_.data()); }
  // Brings the result to its place.
  void finish() {
    if (elements_.is_dense()) return;
    for_each_row_block(Elements<T>(buffer_.data()), size_, 1, elements_, 0.5,
                       [](const T* from, Index, Index count, T* to) { std::copy_n(from, count, to); });
  }

 private:
  Index size_;
  MutableElements<T> elements_;
  Tensor<T> buffer_;
};

}  // namespace blasformer::bindings
