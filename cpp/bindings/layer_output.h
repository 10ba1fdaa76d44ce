#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "bindings/arrays.h"
#include "bindings/layer.h"
#include "core/require.h"
#include "core/tensor.h"

namespace blasformer::bindings {

// The array that calling a layer returns: a new one, or `out` of the caller.
template <class T>
class LayerOutput {
 public:
  // Raises TypeError or ValueError that names out unless it is None or a writeable array of T.
  explicit LayerOutput(const py::object& out) : out_(out) {
    if (out.is_none()) return;
    const py::array array = array_of<T>(out, "out");
    require(array.writeable(), "out must be writeable, got a read-only array");
    const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    const bool dense = (array.flags() & py::array::c_style) != 0;
    if (dense && aligned) {
      auto* const data = static_cast<T*>(const_cast<void*>(array.data()));
      memory_ = Tensor<T>(std::shared_ptr<T[]>(std::shared_ptr<T[]>(), data),
                          Shape(array.shape(), array.shape() + array.ndim()));
    }
  }

  // For an input, which is read until the end: lets the result be computed elsewhere if it shares memory with
  // out.
  template <class Input>
  void keep_apart(const Tensor<Input>& input) {
    const auto *const first = reinterpret_cast<const char*>(memory_.data()),
                      *const other = reinterpret_cast<const char*>(input.data());
    const Index bytes = memory_.size() * Index{sizeof(T)}, others = input.size() * Index{sizeof(Input)};
    if (first < other + others && other < first + bytes) memory_ = Tensor<T>();
  }

  // Where the layer is to write, or null: to memory of its own.
  Tensor<T>* memory() { return memory_.empty() ? nullptr : &memory_; }

  // What the layer returned, where the caller wants it. Raises ValueError if out has another shape.
  py::object result(const Tensor<T>& y) const {
    if (out_.is_none()) return numpy_view(y, true);
    const auto array = py::reinterpret_borrow<py::array>(out_);
    const Shape shape(array.shape(), array.shape() + array.ndim());
    require(shape == y.shape(), "out must have the shape of the output, ", shape_text(y.shape()), ", got ",
            shape_text(shape));
    if (memory_.empty()) out_.attr("__setitem__")(py::ellipsis(), numpy_view(y, false));
    return out_;
  }

 private:
  py::object out_;
  Tensor<T> memory_;  // that of out, if the layer can write there
};

}  // namespace blasformer::bindings
