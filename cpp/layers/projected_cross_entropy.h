#pragma once

#include <cstdint>

#include "core/index.h"
#include "layers/cross_entropy.h"
#include "layers/write.h"

namespace blasformer {

// A linear map to classes, weight (classes, features) and bias (classes,) or null.
template <class T>
struct ClassProjection {
  const T* weight;  // null where it is held in bfloat16:
  const std::uint16_t* bfloat16;
  const T* bias;
  Index features, classes;

  // logits (rows, classes) = x weight^T + bias, for x (rows, features).
  void apply(const T* x, Index rows, T* logits) const;
};

// Where the gradients of x (rows, features), weight and bias go; null where they are not wanted. Those of the
// parameters are written or added to.
template <class T>
struct ProjectedGradients {
  T* x = nullptr;
  T* weight = nullptr;
  T* bias = nullptr;
  Write write = Write::replace;
};

// The sum of cross_entropy(x weight^T + bias, targets) over the rows of x, and its gradients, divided by
// `divisor`. The logits exist only for some rows at a time, and never for those whose target is ignored.
// Throws as target_weight does, before anything is written.
template <class T>
double projected_cross_entropy(const T* x, Index rows, const ClassProjection<T>& projection,
                               const std::int64_t* targets, const CrossEntropyOptions<T>& options,
                               double divisor, const ProjectedGradients<T>& gradients = {});

}  // namespace blasformer
