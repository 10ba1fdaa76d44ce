#pragma once

// What all losses of models take.

#include <pybind11/pybind11.h>

#include <cmath>
#include <cstdint>

#include "bindings/attention_call.h"
#include "core/require.h"
#include "layers/cross_entropy.h"

namespace blasformer::bindings {

struct LossArguments {
  double label_smoothing;
  std::int64_t ignore_index;
  py::object divisor;  // None: the number, or weight, of the targets that count

  template <class T>
  CrossEntropyOptions<T> options(const T* weight = nullptr) const {
    require(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must lie between 0 and 1, got ",
            label_smoothing);
    return {ignore_index, label_smoothing, weight};
  }

  double divisor_or(double weight_of_targets) const {
    if (divisor.is_none()) return weight_of_targets;
    const double value = number(divisor, "divisor");
    require(std::isfinite(value) && value > 0, "divisor must be positive, got ", value);
    return value;
  }
};

// sum / divisor, and 0 if nothing counts.
inline double mean_loss(double sum, double divisor) { return divisor == 0 ? 0 : sum / divisor; }

}  // namespace blasformer::bindings
