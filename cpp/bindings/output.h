#pragma once

#include <vector>

#include "bindings/arrays.h"

namespace blasformer::bindings {

// Whether the memory between the first and the last element of two arrays overlaps.
bool may_overlap(const ArrayView& one, const ArrayView& other);

// The array a function returns: a new one, or `out` of the caller, who may pass memory that inputs lie in.
class Output {
 public:
  // Raises TypeError or ValueError that names out unless it is None, or a writeable array of that shape and
  // type. like_name: the argument whose dtype is required.
  Output(const py::object& out, const Shape& shape, DType dtype, const char* like_name);
  // For a function of x that gives its shape and dtype and may write over it: a new array has the memory
  // order of x.
  Output(const py::object& out, const py::object& x_array, const ArrayView& x);

  // Results are brought into out only at the end if this input, which is read until then, shares memory with
  // it.
  void keep_apart(const ArrayView& input);
  // The same for an input that may be overwritten element by element: only a different arrangement of the
  // memory matters.
  void keep_apart_unless_same(const ArrayView& input);

  // The same if out is not dense in row-major order.
  void keep_dense();

  MutableArrayView view() { return mutable_view(target_); }
  py::array result();

 private:
  py::array output_, target_;
};

}  // namespace blasformer::bindings
