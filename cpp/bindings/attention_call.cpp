#include "bindings/attention_call.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>

namespace blasformer::bindings {

namespace {

Index whole_number(const py::handle& argument, const char* name) {
  py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(argument.ptr()));
  if (!index) {
    PyErr_Clear();
    fail<TypeMismatch>(name, " must be an integer or None, got ", type_name(argument));
  }
  const Index value = PyNumber_AsSsize_t(index.ptr(), nullptr);  // clipped to the range of Index
  return value;
}

Causal causal_of(const py::object& argument) {
  if (argument.ptr() == Py_False) return Causal::no;
  if (argument.ptr() == Py_True) return Causal::yes;
  if (py::isinstance<py::str>(argument)) {
    if (argument.equal(py::str("upper_left"))) return Causal::upper_left;
    if (argument.equal(py::str("lower_right"))) return Causal::lower_right;
    fail("causal must be False, True, \"upper_left\" or \"lower_right\", got ",
         std::string(py::repr(argument)));
  }
  if (type_name(argument) == "bool" || type_name(argument) == "bool_") {  // numpy.bool
    return PyObject_IsTrue(argument.ptr()) == 1 ? Causal::yes : Causal::no;
  }
  fail<TypeMismatch>("causal must be False, True, \"upper_left\" or \"lower_right\", got ",
                     type_name(argument));
}

void set_window(const py::object& argument, AttentionArguments& arguments) {
  if (argument.is_none()) return;
  if (PyBytes_Check(argument.ptr()) || !PySequence_Check(argument.ptr()) ||
      PySequence_Size(argument.ptr()) != 2) {
    PyErr_Clear();
    fail<TypeMismatch>("window must be a pair (left, right), got ", std::string(py::repr(argument)));
  }
  const auto side = [](const py::object& value) -> std::optional<Index> {
    if (value.is_none()) return std::nullopt;
    return whole_number(value, "window's sides");
  };
  arguments.window = true;
  arguments.window_left = side(argument[py::int_(0)]);
  arguments.window_right = side(argument[py::int_(1)]);
}

}  // namespace

double number(const py::object& argument, const char* name) {
  const double value = PyFloat_AsDouble(argument.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail<TypeMismatch>(name, " must be a number, got ", type_name(argument));
  }
  return value;
}

ArrayView AttentionCall::keep(py::object array, ArrayView (*view)(py::object&, const char*),
                              const char* name) {
  const ArrayView result = view(array, name);
  arrays.push_back(std::move(array));
  return result;
}

void AttentionCall::keep(std::optional<ArrayView>& target, const py::object& array,
                         ArrayView (*view)(py::object&, const char*), const char* name) {
  if (!array.is_none()) target = keep(array, view, name);
}

void parse_masks(const MaskArguments& masks, AttentionCall& call) {
  AttentionArguments& arguments = call.arguments;
  call.keep(arguments.mask, masks.mask, bool_view, "mask");
  arguments.causal = causal_of(masks.causal);
  call.keep(arguments.query_offset, masks.query_offset, int64_view, "query_offset");
  set_window(masks.window, arguments);
  call.keep(arguments.query_lengths, masks.query_lengths, int64_view, "query_lengths");
  call.keep(arguments.key_lengths, masks.key_lengths, int64_view, "key_lengths");
  call.keep(arguments.query_segments, masks.query_segments, int64_view, "query_segments");
  call.keep(arguments.key_segments, masks.key_segments, int64_view, "key_segments");
}

AttentionCall layer_call(const py::tuple& arguments, std::optional<std::uint64_t> seed) {
  AttentionCall call;
  parse_masks({arguments[0], arguments[2], arguments[3], arguments[4], arguments[5], arguments[6],
               arguments[7], arguments[8]},
              call);
  call.keep(call.arguments.bias, arguments[1], float_view, "bias");
  call.keep(call.arguments.alibi_slopes, arguments[9], float_view, "alibi_slopes");
  call.arguments.seed = seed;
  return call;
}

std::optional<WeightSelection> selection_of(const py::object& argument) {
  if (argument.is_none()) return std::nullopt;
  const auto parts = argument.cast<py::tuple>();
  return WeightSelection{parts[0].cast<std::vector<Index>>(), parts[1].cast<std::vector<Index>>(),
                         parts[2].cast<bool>()};
}

}  // namespace blasformer::bindings
