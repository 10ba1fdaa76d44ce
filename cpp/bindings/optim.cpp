#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string_view>
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
  if (!py::isinstance<py::array>(object)) fail("an optimiser takes arrays, got ", type_name(object));
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
class Source {
 public:
  explicit Source(const py::handle& source) : source_(py::reinterpret_borrow<py::object>(source)) {}

  // From here on the layer's weights count as changed: they are to be, before the interpreter lock is given
  // up.
  void open() {
    if (py::isinstance<Layer>(source_)) {
      parameters_ = source_.cast<Layer&>().writeable_parameters();
    } else {
      arrays_ = source_.cast<py::dict>();
    }
  }

  template <class T>
  T* parameter(const py::handle& name, Index size) {
    if (arrays_) return writeable_elements<T>((*arrays_)[name], size);
    const auto text = name.cast<std::string_view>();
    // They are mostly asked for in their order.
    for (std::size_t tried = 0; tried < parameters_.size(); ++tried) {
      const WriteableParameter& parameter = parameters_[next_];
      next_ = next_ + 1 < parameters_.size() ? next_ + 1 : 0;
      if (parameter.name != text) continue;
      require(parameter.dtype == dtype_of<T>() && parameter.size == size,
              "an optimiser takes dense arrays of one size and dtype for each parameter");
      return static_cast<T*>(parameter.data);
    }
    fail<std::out_of_range>("the layer has no parameter ", text);
  }

 private:
  py::object source_;
  std::vector<WriteableParameter> parameters_;
  std::size_t next_ = 0;
  std::optional<py::dict> arrays_;
};

// Of (rule, source, name, gradient, memory), at first without the parameter.
template <class T>
ParameterUpdate<T> parameter_update(const py::tuple& entry, std::size_t memories) {
  const auto memory = entry[4].cast<py::list>();
  require(memory.size() == memories, "an optimiser remembers ", memories, " arrays for each parameter");
  ParameterUpdate<T> update;
  update.rule = entry[0].cast<std::size_t>();
  update.size = py::reinterpret_borrow<py::array>(entry[3]).size();
  update.gradient = elements<T>(entry[3], update.size);
  for (std::size_t i = 0; i < memories; ++i) update.memory[i] = writeable_elements<T>(memory[i], update.size);
  return update;
}

ParameterUpdates parameter_updates(const py::list& entries, std::size_t rules, std::size_t memories) {
  ParameterUpdates updates;
  for (const py::handle& item : entries) {
    const auto entry = item.cast<py::tuple>();
    require(entry.size() == 5 && entry[0].cast<std::size_t>() < rules, "no rule for a parameter");
    require(py::isinstance<py::array>(entry[3]), "an optimiser takes arrays");
    if (dtype_of_array(py::reinterpret_borrow<py::array>(entry[3])) == DType::float64) {
      updates.double_precision.push_back(parameter_update<double>(entry, memories));
    } else {
      updates.single_precision.push_back(parameter_update<float>(entry, memories));
    }
  }
  return updates;
}

void add_parameters(ParameterUpdates& updates, const py::list& entries, std::vector<Source>& sources) {
  auto next_single = updates.single_precision.begin();
  auto next_double = updates.double_precision.begin();
  for (const py::handle& item : entries) {
    const auto entry = item.cast<py::tuple>();
    Source& source = sources.at(entry[1].cast<std::size_t>());
    if (dtype_of_array(py::reinterpret_borrow<py::array>(entry[3])) == DType::float64) {
      next_double->parameter = source.parameter<double>(entry[2], next_double->size);
      ++next_double;
    } else {
      next_single->parameter = source.parameter<float>(entry[2], next_single->size);
      ++next_single;
    }
  }
}

// Gradients that lie in parameters, as views of weights do, are read from copies, which are returned: a
// parameter changes when others have been written already.
template <class T>
std::vector<Tensor<T>> copy_gradients_in_parameters(std::vector<ParameterUpdate<T>>& updates) {
  std::map<const T*, const T*> parameters;  // where they begin and end
  for (const ParameterUpdate<T>& update : updates)
    parameters.emplace(update.parameter, update.parameter + update.size);
  std::vector<Tensor<T>> copies;
  for (ParameterUpdate<T>& update : updates) {
    const auto behind = parameters.lower_bound(update.gradient + update.size);
    if (behind == parameters.begin() || std::prev(behind)->second <= update.gradient) continue;
    copies.emplace_back(Shape{update.size});
    std::copy_n(update.gradient, update.size, copies.back().data());
    update.gradient = copies.back().data();
  }
  return copies;
}

// Updates all parameters and returns the norm of the gradients; if that is not finite nothing changes. The
// update keeps the interpreter lock: nobody begins to compute with weights of which half are new.
template <class Rule>
double step(const std::vector<Rule>& rules, const py::list& source_list, const py::list& entries,
            std::size_t memories, double max_norm) {
  ParameterUpdates updates = parameter_updates(entries, rules.size(), memories);
  std::vector<Source> sources(source_list.begin(), source_list.end());
  double norm = 0;
  {
    const ReleaseGil released;
    norm = gradient_norm(updates);
  }
  if (!std::isfinite(norm)) return norm;
  for (Source& source : sources) source.open();
  add_parameters(updates, entries, sources);
  const auto single_copies = copy_gradients_in_parameters(updates.single_precision);
  const auto double_copies = copy_gradients_in_parameters(updates.double_precision);
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
    if (!py::isinstance<py::array>(object)) fail("gradients must be arrays, got ", type_name(object));
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
