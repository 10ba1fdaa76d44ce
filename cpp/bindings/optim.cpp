#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "bindings/layer.h"
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

// Where parameters are written: a layer of ours, or a dictionary of arrays.
class Sources {
 public:
  explicit Sources(const py::list& sources) {
    for (const py::handle& source : sources) sources_.push_back(py::reinterpret_borrow<py::object>(source));
  }

  // From here on the layers' weights count as changed: they are to be, before the interpreter lock is given
  // up.
  void open() {
    for (const py::object& source : sources_) {
      const bool is_layer = py::isinstance<Layer>(source);
      arrays_.push_back(is_layer ? source.cast<Layer&>().writeable_parameters() : source.cast<py::dict>());
    }
  }

  py::object parameter(const py::tuple& entry) const {
    return arrays_.at(entry[1].cast<std::size_t>())[entry[2]];
  }

 private:
  std::vector<py::object> sources_;
  std::vector<py::dict> arrays_;
};

// Of (rule, source, name, gradient, *memory), at first without the parameter.
template <class T>
ParameterUpdate<T> parameter_update(const py::tuple& entry, std::size_t memories) {
  require(entry.size() == 4 + memories, "an optimiser remembers ", memories, " arrays for each parameter");
  ParameterUpdate<T> update;
  update.rule = entry[0].cast<std::size_t>();
  update.size = py::reinterpret_borrow<py::array>(entry[3]).size();
  update.gradient = elements<T>(entry[3], update.size);
  for (std::size_t i = 0; i < memories; ++i)
    update.memory[i] = writeable_elements<T>(entry[4 + i], update.size);
  return update;
}

ParameterUpdates parameter_updates(const py::list& entries, std::size_t rules, std::size_t memories) {
  ParameterUpdates updates;
  for (const py::handle& item : entries) {
    const auto entry = item.cast<py::tuple>();
    require(entry.size() >= 4 && entry[0].cast<std::size_t>() < rules, "no rule for a parameter");
    require(py::isinstance<py::array>(entry[3]), "an optimiser takes arrays");
    if (dtype_of_array(py::reinterpret_borrow<py::array>(entry[3])) == DType::float64) {
      updates.double_precision.push_back(parameter_update<double>(entry, memories));
    } else {
      updates.single_precision.push_back(parameter_update<float>(entry, memories));
    }
  }
  return updates;
}

void add_parameters(ParameterUpdates& updates, const py::list& entries, const Sources& sources) {
  auto next_single = updates.single_precision.begin();
  auto next_double = updates.double_precision.begin();
  for (const py::handle& item : entries) {
    const auto entry = item.cast<py::tuple>();
    const py::object parameter = sources.parameter(entry);
    if (dtype_of_array(py::reinterpret_borrow<py::array>(entry[3])) == DType::float64) {
      next_double->parameter = writeable_elements<double>(parameter, next_double->size);
      ++next_double;
    } else {
      next_single->parameter = writeable_elements<float>(parameter, next_single->size);
      ++next_single;
    }
  }
}

// Updates all parameters and returns the norm of the gradients; if that is not finite nothing changes. The
// update keeps the interpreter lock: nobody begins to compute with weights of which half are new.
template <class Rule>
double step(const std::vector<Rule>& rules, const py::list& source_list, const py::list& entries,
            std::size_t memories, double max_norm) {
  ParameterUpdates updates = parameter_updates(entries, rules.size(), memories);
  Sources sources(source_list);
  double norm = 0;
  {
    const ReleaseGil released;
    norm = gradient_norm(updates);
  }
  if (!std::isfinite(norm)) return norm;
  sources.open();
  add_parameters(updates, entries, sources);
  update(updates, rules, norm, max_norm);
  return norm;
}

using SgdNumbers = std::tuple<double, double, double, bool>;
using AdamNumbers = std::tuple<double, double, double, double, double, bool, Index>;
using LionNumbers = std::tuple<double, double, double, double>;

double sgd_step(const std::vector<SgdNumbers>& rules, const py::list& sources, const py::list& updates,
                bool with_momentum, double max_norm) {
  std::vector<SgdRule> sgd;
  for (const auto& [lr, momentum, weight_decay, nesterov] : rules)
    sgd.push_back({lr, momentum, weight_decay, nesterov});
  return step(sgd, sources, updates, with_momentum ? 1 : 0, max_norm);
}

double adam_step(const std::vector<AdamNumbers>& rules, const py::list& sources, const py::list& updates,
                 double max_norm) {
  std::vector<AdamRule> adam;
  for (const auto& [lr, beta1, beta2, eps, weight_decay, decoupled_decay, step_number] : rules) {
    const auto n = static_cast<double>(step_number);
    adam.push_back({lr, beta1, beta2, eps, weight_decay, decoupled_decay, 1 - std::pow(beta1, n),
                    1 - std::pow(beta2, n)});
  }
  return step(adam, sources, updates, 2, max_norm);
}

double lion_step(const std::vector<LionNumbers>& rules, const py::list& sources, const py::list& updates,
                 double max_norm) {
  std::vector<LionRule> lion;
  for (const auto& [lr, beta1, beta2, weight_decay] : rules) lion.push_back({lr, beta1, beta2, weight_decay});
  return step(lion, sources, updates, 1, max_norm);
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
  module.def("sgd_step", &sgd_step, py::arg("rules"), py::arg("sources"), py::arg("updates"),
             py::arg("with_momentum"), py::arg("max_norm"));
  module.def("adam_step", &adam_step, py::arg("rules"), py::arg("sources"), py::arg("updates"),
             py::arg("max_norm"));
  module.def("lion_step", &lion_step, py::arg("rules"), py::arg("sources"), py::arg("updates"),
             py::arg("max_norm"));
  module.def("gradient_norm", &norm_of, py::arg("gradients"));
}

}  // namespace blasformer::bindings
