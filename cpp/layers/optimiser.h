#pragma once

// Optimisers: how parameters follow their gradients. In every rule g = gradient / max(1, norm / max_norm),
// clipped by the global norm.
//
// SGD (Sutskever et al. 2013):  g += decay p;  m = momentum m + g;  p -= lr (nesterov ? g + momentum m : m)
// Adam (Kingma and Ba 2015):    g += decay p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//                               p -= lr m / c1 / (sqrt(v / c2) + eps),  c = 1 - beta^step
// AdamW (Loshchilov and Hutter 2019): Adam without decay in g, but p -= lr decay p first
// Lion (Chen et al. 2023):      p -= lr (sign(beta1 m + (1 - beta1) g) + decay p),
//                               m = beta2 m + (1 - beta2) g

#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "core/index.h"
#include "kernels/optimiser_kernels.h"

namespace blasformer {

// A parameter, its gradient and what the rule remembers of it: dense arrays of (size,).
template <class T>
struct ParameterUpdate {
  T* parameter = nullptr;
  const T* gradient = nullptr;
  T* memory[2] = {};  // what the rule needs; SGD without momentum nothing
  Index size = 0;
  std::size_t rule = 0;  // which of the rules is followed
};

struct ParameterUpdates {
  std::vector<ParameterUpdate<float>> single_precision;
  std::vector<ParameterUpdate<double>> double_precision;
};

// sqrt(sum of squares) over all gradients, with the same bits for any number of threads; NaN or Inf if an
// element is.
double gradient_norm(const ParameterUpdates& updates);

constexpr double kNoMaximumNorm = std::numeric_limits<double>::infinity();

// Updates all parameters, each by its rule, in one pass over memory. norm: that of the gradients, which are
// scaled down to max_norm if it is larger.
void update(const ParameterUpdates& updates, const std::vector<SgdRule>& rules, double norm, double max_norm);
void update(const ParameterUpdates& updates, const std::vector<AdamRule>& rules, double norm,
            double max_norm);
void update(const ParameterUpdates& updates, const std::vector<LionRule>& rules, double norm,
            double max_norm);

}  // namespace blasformer
