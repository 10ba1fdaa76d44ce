#pragma once

#include "core/index.h"

namespace blasformer {

// The rules by which parameters follow their gradients, g = gradient_scale * gradient: see
// layers/optimiser.h.
struct SgdRule {
  double lr, momentum, weight_decay;
  bool nesterov;
};

struct AdamRule {
  double lr, beta1, beta2, eps, weight_decay;
  bool decoupled_decay;                       // AdamW: the parameter decays by itself, not through g
  double bias_correction1, bias_correction2;  // 1 - beta^step
};

struct LionRule {
  double lr, beta1, beta2, weight_decay;
};

// Every function makes one pass over arrays of (size,), which do not overlap.
template <class T>
struct OptimiserKernels {
  // The sum of squares, in double: the same bits for every instruction set. NaN or Inf if an element is.
  double (*sum_of_squares)(const T* x, Index size);

  void (*sgd)(const SgdRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter);
  void (*sgd_momentum)(const SgdRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter,
                       T* momentum);
  void (*adam)(const AdamRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter, T* mean,
               T* mean_square);
  void (*lion)(const LionRule& rule, T gradient_scale, const T* gradient, Index size, T* parameter,
               T* momentum);
};

// Those of active_isa().
template <class T>
const OptimiserKernels<T>& optimiser_kernels();

}  // namespace blasformer
