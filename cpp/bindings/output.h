#pragma once

#include <vector>

#include "bindings/arrays.h"

namespace blasformer::bindings {

// A new array, or out of the caller. Raises TypeError or ValueError that names out unless it is None or a
// writeable array of that shape and type. like_name: the argument whose dtype is required.
py::array output_array(const py::object& out, const Shape& shape, DType dtype, const char* like_name);

// Whether the memory between the first and the last element of two arrays overlaps.
bool may_overlap(const ArrayView& one, const ArrayView& other);

// The array a function returns: a new one, or `out` of the caller, who may pass memory that inputs lie in.
class Output {
 public:
  // See output_array.
  Output(const py::object& out, const Shape& shape, DType dtype, const char* like_name);
  // For a function of x that gives its shape and dtype and may write over it: a new array has the memory
  // order of x.
  Output(const py::object& out, const py::object& x_array, const ArrayView& x);

  // Each of these lets results be computed elsewhere and brought into out at the end, if need be.
  // For an input that is read until the end: if it shares memory with out.
  void keep_apart(const ArrayView& input);
  // For an input whose elements may be overwritten as they are read: unless it is out, element by element.
  void keep_apart_unless_same(const ArrayView& input);
  // For a function that writes dense rows: unless out is dense in row-major order.
  void keep_dense();

  MutableArrayView view() { return mutable_view(target_); }
  py::array result();

 private:
  py::array output_, target_;
};

}  // namespace blasformer::bindings
