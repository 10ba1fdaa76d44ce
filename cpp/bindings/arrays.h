#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "core/array_view.h"
#include "core/describe.h"
#include "core/require.h"
#include "core/tensor.h"

namespace blasformer::bindings {

namespace py = pybind11;

// The name of an object's type, and that of an array's dtype, for errors.
std::string type_name(const py::handle& object);
std::string dtype_name(const py::array& array);

// The argument as a NumPy array, or nothing if it is none. Raises TypeError for a masked array, whose mask
// would be ignored.
std::optional<py::array> given_array(const py::handle& argument, const char* name);

// The element type of a NumPy array, or nothing if the library has no use for it.
std::optional<DType> dtype_of_array(const py::array& array);

// Borrows a floating-point NumPy array, whatever its strides. Raises TypeError that names the argument unless
// it is a numpy.ndarray of float32, float64, float16 or bfloat16 in native byte order. The array must outlive
// the view. An array whose elements are not aligned, or whose strides are not whole elements, is first
// replaced by a copy.
ArrayView float_view(py::object& argument, const char* name);
ArrayView bool_view(py::object& argument, const char* name);
// Lengths, offsets, segments: any integer type, copied to int64. Numbers that do not fit are a ValueError.
ArrayView int64_view(py::object& argument, const char* name);
// Ids, positions, classes: likewise, but they are out of range, an IndexError.
ArrayView id_view(py::object& argument, const char* name);

// A new NumPy array of that dtype (bfloat16 through ml_dtypes, which the caller's input has already
// imported).
py::array new_array(DType dtype, const Index* shape, int rank);
MutableArrayView mutable_view(py::array& array);

// A NumPy array on the memory of a tensor, which it keeps alive.
template <class T>
py::array numpy_view(const Tensor<T>& tensor, bool writeable);

}  // namespace blasformer::bindings
