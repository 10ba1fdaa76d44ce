#pragma once

#include <cstdint>

#include "core/index.h"

namespace blasformer {

// What the loss of a row is made of: see layers/cross_entropy.h.
template <class T>
struct CrossEntropyTerms {
  std::int64_t ignore_index;
  double label_smoothing;
  const T* weight;    // (classes,), or null: ones
  double weight_sum;  // over the classes
};

template <class T>
struct CrossEntropyKernels {
  // losses[r] of logits (rows, classes) and, unless d_logits is null, its gradient times `scale`. d_logits
  // may be logits. Targets are classes or ignore_index.
  void (*cross_entropy)(const T* logits, const std::int64_t* targets, Index rows, Index classes,
                        const CrossEntropyTerms<T>& terms, double scale, double* losses, T* d_logits);
};

// Those of active_isa().
template <class T>
const CrossEntropyKernels<T>& cross_entropy_kernels();

}  // namespace blasformer
