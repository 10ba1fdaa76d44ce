#pragma once

// What follows from a layer's one list of parameters, each_parameter(layer, visit(name, tensor)).

#include <string>
#include <type_traits>

#include "core/index.h"
#include "core/tensor.h"

namespace blasformer {

// A borrowed void(const std::string& name, Things&...): visitors of one type for all who visit the parts of a
// layer, so that the compiler writes each part's list once.
template <class... Things>
class Visitor {
 public:
  template <class Callable>
  explicit Visitor(const Callable& callable)
      : object_(&callable), call_([](const void* object, const std::string& name, Things&... things) {
          (*static_cast<const Callable*>(object))(name, things...);
        }) {}
  void operator()(const std::string& name, Things&... things) const { call_(object_, name, things...); }

 private:
  const void* object_;
  void (*call_)(const void*, const std::string&, Things&...);
};

// The type of a part of a layer that may be const.
template <class Layer, class Part>
using PartOf = std::conditional_t<std::is_const_v<Layer>, const Part, Part>;

// The parameters of a part of a layer, as "prefix.name".
template <class Layer, class Visit>
void each_parameter_of(const std::string& prefix, Layer& part, Visit&& visit) {
  using Parameter = PartOf<Layer, Tensor<typename Layer::Scalar>>;
  const auto named = [&](const std::string& name, Parameter& tensor) { visit(prefix + "." + name, tensor); };
  std::remove_const_t<Layer>::each_parameter(part, Visitor<Parameter>(named));
}

// The tensors that the parameters lie in: the parameters themselves, but for layers that give parts of one
// tensor names of their own and have an each_storage(layer, visit(tensor)).
template <class Layer, class Visit>
void each_storage(Layer& layer, Visit&& visit) {
  using L = std::remove_const_t<Layer>;
  if constexpr (requires { L::each_storage(layer, visit); }) {
    L::each_storage(layer, visit);
  } else {
    L::each_parameter(layer, [&](const std::string&, auto& tensor) { visit(tensor); });
  }
}

// A layer with parameters of its own (a copy made by the compiler shares them).
template <class Layer>
Layer copy_of(const Layer& layer) {
  Layer result = layer;
  each_storage(result, [](auto& tensor) {
    if (!tensor.empty()) tensor = tensor.copy();  // not weights that are held in bfloat16
  });
  return result;
}

// A value for the gradients of a layer, not initialised.
template <class Layer>
Layer gradients_of(const Layer& layer) {
  Layer result = layer;
  each_storage(result, [](auto& tensor) { tensor = std::remove_cvref_t<decltype(tensor)>(tensor.shape()); });
  return result;
}

// Whether anything is wanted in a value for gradients.
template <class Layer>
bool wants_gradients(const Layer& gradients) {
  bool wanted = false;
  each_storage(gradients, [&](const auto& tensor) { wanted = wanted || !tensor.empty(); });
  return wanted;
}

template <class Layer>
Index parameter_count(const Layer& layer) {
  Index count = 0;
  Layer::each_parameter(layer, [&](const std::string&, const auto& tensor) { count += tensor.size(); });
  return count;
}

}  // namespace blasformer
