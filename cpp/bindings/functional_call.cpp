#include "bindings/functional_call.h"

#include <cmath>
#include <limits>
#include <string>

#include "bindings/attention_call.h"

namespace blasformer::bindings {

Shape shape_of(const ArrayView& view) { return Shape(view.shape, view.shape + view.rank); }

Index product(const ArrayView& view, int first_axis, int last_axis) {
  Index result = 1;
  for (int axis = first_axis; axis < last_axis; ++axis) result *= view.shape[axis];
  return result;
}

Index integer(const py::object& argument, const char* name) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(argument.ptr()));
  if (!index) {
    PyErr_Clear();
    fail<TypeMismatch>(name, " must be an integer, got ", type_name(argument));
  }
  const Index value = PyLong_AsSsize_t(index.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail(name, " must fit into 64 bits, got ", std::string(py::str(index)));
  }
  return value;
}

ArrayView view_like(py::object& argument, const char* name, const ArrayView& other, const char* other_name) {
  const ArrayView view = float_view(argument, name);
  if (view.dtype != other.dtype) {
    fail<TypeMismatch>(name, " must have the dtype of ", other_name, ", ", dtype_text(other.dtype), ", got ",
                       dtype_text(view.dtype));
  }
  return view;
}

ArrayView gradient_view(py::object& argument, const Shape& shape, const ArrayView& x, const char* x_name) {
  const ArrayView view = view_like(argument, "d_output", x, x_name);
  require(shape_of(view) == shape, "d_output must have the shape of the output, ", shape_text(shape),
          ", got ", shape_text(view));
  return view;
}

int axis_of(const py::object& argument, const ArrayView& x, const char* x_name) {
  const Index axis = integer(argument, "axis");
  require(axis >= -x.rank && axis < x.rank, "axis must be an axis of ", x_name, " ", shape_text(x), ", got ",
          axis);
  return static_cast<int>(axis < 0 ? axis + x.rank : axis);
}

Activation gelu_activation(const std::string& approximate) {
  if (approximate == "none") return Activation::gelu;
  if (approximate == "tanh") return Activation::gelu_tanh;
  if (approximate == "sigmoid") return Activation::gelu_sigmoid;
  fail("approximate must be \"none\", \"tanh\" or \"sigmoid\", got \"", approximate, "\"");
}

int normalized_axes(const py::object& argument, const ArrayView& x) {
  Shape shape;
  const bool is_one = PyBytes_Check(argument.ptr()) || PyUnicode_Check(argument.ptr()) ||
                      PySequence_Size(argument.ptr()) < 0;  // as that of an integer, and of an array of one
  PyErr_Clear();
  if (!is_one) {
    for (const py::handle& extent : argument) {
      shape.push_back(integer(py::reinterpret_borrow<py::object>(extent), "normalized_shape"));
    }
  } else {
    shape.push_back(integer(argument, "normalized_shape"));
  }
  require(!shape.empty(), "normalized_shape must name at least one axis, got ()");
  const int axes = static_cast<int>(shape.size());
  const bool fits = axes <= x.rank && std::equal(shape.begin(), shape.end(), x.shape + x.rank - axes);
  require(fits, "normalized_shape must be the last axes of x ", shape_text(x), ", got ", shape_text(shape));
  return axes;
}

double epsilon_of(const py::object& argument) {
  const double eps = number(argument, "eps");
  require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got ", eps);
  return eps;
}

double machine_epsilon(DType dtype) {
  switch (dtype) {
    case DType::float64: return std::numeric_limits<double>::epsilon();
    case DType::float16: return 0x1p-10;
    case DType::bfloat16: return 0x1p-7;
    default: return std::numeric_limits<float>::epsilon();
  }
}

std::optional<ArrayView> norm_parameter(py::object& argument, const char* name, const ArrayView& x,
                                        int axes) {
  if (argument.is_none()) return std::nullopt;
  const ArrayView view = view_like(argument, name, x);
  const Index* shape = x.shape + x.rank - axes;
  const bool fits = view.rank == axes && std::equal(shape, shape + axes, view.shape);
  require(fits, name, " must have the shape ", shape_text(shape, axes), " that is normalised, got ",
          shape_text(view));
  return view;
}

}  // namespace blasformer::bindings
