#include "bindings/output.h"

#include <algorithm>
#include <utility>

#include "core/tensor_view.h"

namespace blasformer::bindings {

py::array output_array(const py::object& out, const Shape& shape, DType dtype, const char* like_name) {
  const int rank = static_cast<int>(shape.size());
  if (out.is_none()) return new_array(dtype, shape.data(), rank);
  py::object argument = out;
  const ArrayView view = float_view(argument, "out");
  require(argument.ptr() == out.ptr(), "out must have aligned elements");
  const bool same_shape = view.rank == rank && std::equal(shape.begin(), shape.end(), view.shape);
  require(same_shape, "out must have the shape ", shape_text(shape), ", got ", shape_text(view));
  if (view.dtype != dtype) {
    fail<TypeMismatch>("out must have the dtype of ", like_name, ", ", dtype_text(dtype), ", got ",
                       dtype_text(view.dtype));
  }
  py::array array = py::reinterpret_borrow<py::array>(out);
  require(array.writeable(), "out must be writeable, got a read-only array");
  return array;
}

namespace {

bool same_memory(const ArrayView& one, const ArrayView& other) {
  return one.data == other.data && one.dtype == other.dtype && one.rank == other.rank &&
         std::equal(one.shape, one.shape + one.rank, other.shape) &&
         std::equal(one.stride, one.stride + one.rank, other.stride);
}

}  // namespace

bool may_overlap(const ArrayView& one, const ArrayView& other) {
  const auto bounds = [](const ArrayView& view) {
    const auto* low = static_cast<const char*>(view.data);
    const char* high = low + item_size(view.dtype);
    for (int axis = 0; axis < view.rank; ++axis) {
      const Index reach = (view.shape[axis] - 1) * view.stride[axis] * item_size(view.dtype);
      (reach < 0 ? low : high) += reach;
    }
    return std::pair(low, high);
  };
  const auto a = bounds(one);
  const auto b = bounds(other);
  return a.first < b.second && b.first < a.second;
}

Output::Output(const py::object& out, const Shape& shape, DType dtype, const char* like_name)
    : output_(output_array(out, shape, dtype, like_name)), target_(output_) {}

Output::Output(const py::object& out, const py::object& x_array, const ArrayView& x)
    : output_(
          out.is_none() && (py::reinterpret_borrow<py::array>(x_array).flags() & py::array::c_style) == 0
              ? py::array(py::module_::import("numpy").attr("empty_like")(x_array, py::arg("subok") = false))
              : output_array(out, Shape(x.shape, x.shape + x.rank), x.dtype, "x")),
      target_(output_) {
  keep_apart_unless_same(x);
}

void Output::keep_apart(const ArrayView& input) {
  const ArrayView own = readable(view());
  if (may_overlap(own, input)) target_ = new_array(own.dtype, own.shape, own.rank);
}

void Output::keep_dense() {
  if ((target_.flags() & py::array::c_style) == 0) {
    const MutableArrayView own = view();
    target_ = new_array(own.dtype, own.shape, own.rank);
  }
}

void Output::keep_apart_unless_same(const ArrayView& input) {
  if (!same_memory(readable(view()), input)) keep_apart(input);
}

py::array Output::result() {
  if (!target_.is(output_)) output_.attr("__setitem__")(py::ellipsis(), target_);
  return output_;
}

}  // namespace blasformer::bindings
