#pragma once

// What follows from a layer's one list of parameters, each_parameter(layer, visit(name, tensor)).

#include <string>
#include <type_traits>

#include "core/index.h"

namespace blasformer {

// The parameters of a part of a layer, as "prefix.name".
template <class Layer, class Visit>
void each_parameter_of(const std::string& prefix, Layer& part, Visit&& visit) {
  std::remove_const_t<Layer>::each_parameter(
      part, [&](const std::string& name, auto& tensor) { visit(prefix + "." + name, tensor); });
}

// A layer with parameters of its own (a copy made by the compiler shares them).
template <class Layer>
Layer copy_of(const Layer& layer) {
  Layer result = layer;
  Layer::each_parameter(result, [](const std::string&, auto& tensor) { tensor = tensor.copy(); });
  return result;
}

template <class Layer>
Index parameter_count(const Layer& layer) {
  Index count = 0;
  Layer::each_parameter(layer, [&](const std::string&, const auto& tensor) { count += tensor.size(); });
  return count;
}

}  // namespace blasformer
