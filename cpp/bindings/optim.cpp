#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "layers/optimiser.h"

namespace blasformer::bindings {

namespace {

// The elements of a dense array of T.
template <class T>
T* elements(const py::handle& object, Index size) {
  require(py::isinstance<py::array>(object), "an optimiser takes arrays, got ", type_name(object));
  const auto array = py::reinterpret_borrow<py::array>(object);
  const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
  require(dtype_of_array(array) == dtype_of<T>() && array.size() == size && aligned &&
              (array.flags() & py::array::c_style) != 0,
          "an optimiser takes dense arrays of one size and dtype for each parameter");
  return static_cast<T*>(const_cast<void*>(array.data()));
}

template <class T>
T* writeable_elements(const py::handle& object, Index size) {
  T* const data = elements<T>(object, size);
  require(py::reinterpret_borrow<py::array>(object).writeable(), "an optimiser takes writeable arrays");
  return data;
}

// Of (rule, parameter, gradient, *memory).
template <class T>
ParameterUpdate<T> parameter_update(const py::tuple& entry, std::size_t memories) {
  require(entry.size() == 3 + memories, "an optimiser remembers ", memories, " arrays for each parameter");
  ParameterUpdate<T> update;
  update.rule = entry[0].cast<std::size_t>();
  update.size = py::reinterpret_borrow<py::array>(entry[1]).size();
  update.parameter = writeable_elements<T>(entry[1], update.size);
  update.gradient = elements<T>(entry[2], update.size);
  for (std::size_t i = 0; i < memories; ++i)
    update.memory[i] = writeable_elements<T>(entry[3 + i], update.size);
  return update;
}

ParameterUpdates parameter_updates(const py::list& entries, std::size_t rules, std::size_t memories) {
  ParameterUpdates updates;
  for (const py::handle& item : entries) {
    const auto entry = item.cast<py::tuple>();
    require(entry.size() >= 3 && entry[0].cast<std::size_t>() < rules, "no rule for a parameter");
    require(py::isinstance<py::array>(entry[1]), "an optimiser takes arrays");
    if (dtype_of_array(py::reinterpret_borrow<py::array>(entry[1])) == DType::float64) {
      updates.double_precision.push_back(parameter_update<double>(entry, memories));
    } else {
      updates.single_precision.push_back(parameter_update<float>(entry, memories));
    }
  }
  return updates;
}

// Updates all parameters and returns the norm of the gradients; if that is not finite nothing changes.
template <class Rule>
double step(const std::vector<Rule>& rules, const py::list& entries, std::size_t memories, double max_norm) {
  const ParameterUpdates updates = parameter_updates(entries, rules.size(), memories);
  const ReleaseGil released;
  const double norm = gradient_norm(updates);
  if (std::isfinite(norm)) update(updates, rules, norm, max_norm);
  return norm;
}

using SgdNumbers = std::tuple<double, double, double, bool>;
using AdamNumbers = std::tuple<double, double, double, double, double>;
using LionNumbers = std::tuple<double, double, double, double>;

double sgd_step(const std::vector<SgdNumbers>& groups, const py::list& entries, bool with_momentum,
                double max_norm) {
  std::vector<SgdRule> rules;
  for (const auto& [lr, momentum, weight_decay, nesterov] : groups)
    rules.push_back({lr, momentum, weight_decay, nesterov});
  return step(rules, entries, with_momentum ? 1 : 0, max_norm);
}

double adam_step(const std::vector<AdamNumbers>& groups, const py::list& entries, bool decoupled_decay,
                 Index step_number, double max_norm) {
  std::vector<AdamRule> rules;
  for (const auto& [lr, beta1, beta2, eps, weight_decay] : groups) {
    const auto n = static_cast<double>(step_number);
    rules.push_back({lr, beta1, beta2, eps, weight_decay, decoupled_decay, 1 - std::pow(beta1, n),
                     1 - std::pow(beta2, n)});
  }
  return step(rules, entries, 2, max_norm);
}

double lion_step(const std::vector<LionNumbers>& groups, const py::list& entries, double max_norm) {
  std::vector<LionRule> rules;
  for (const auto& [lr, beta1, beta2, weight_decay] : groups)
    rules.push_back({lr, beta1, beta2, weight_decay});
  return step(rules, entries, 1, max_norm);
}

double norm_of(const py::list& gradients) {
  ParameterUpdates updates;
  for (const py::handle& object : gradients) {
    require(py::isinstance<py::array>(object), "gradients must be arrays, got ", type_name(object));
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (dtype_of_array(array) == DType::float64) {
      ParameterUpdate<double> one;
      one.size = array.size();
      one.gradient = elements<double>(array, one.size);
      updates.double_precision.push_back(one);
    } else {
      ParameterUpdate<float> one;
      one.size = array.size();
      one.gradient = elements<float>(array, one.size);
      updates.single_precision.push_back(one);
    }
  }
  const ReleaseGil released;
  return gradient_norm(updates);
}

}  // namespace

void bind_optim(py::module_& module) {
  module.def("sgd_step", &sgd_step, py::arg("groups"), py::arg("updates"), py::arg("with_momentum"),
             py::arg("max_norm"));
  module.def("adam_step", &adam_step, py::arg("groups"), py::arg("updates"), py::arg("decoupled_decay"),
             py::arg("step"), py::arg("max_norm"));
  module.def("lion_step", &lion_step, py::arg("groups"), py::arg("updates"), py::arg("max_norm"));
  module.def("gradient_norm", &norm_of, py::arg("gradients"));
}

}  // namespace blasformer::bindings
