#pragma once

#include <cstdint>

#include "core/index.h"
#include "kernels/elements.h"

namespace blasformer {

// With p = softmax(logits) of a row and y its target, the loss of the row is
//   -(1 - label_smoothing) weight[y] log p[y] - label_smoothing / classes sum_c weight[c] log p[c],
// and 0 where y is ignore_index (Szegedy et al. 2016; as torch.nn.functional.cross_entropy).
template <class T>
struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  double label_smoothing = 0;
  const T* weight = nullptr;  // (classes,), finite and not negative; null: ones
};

// The sum of weight[target] over the targets that are not ignored, which without weights is their number:
// what a mean divides by. Throws std::out_of_range if a target is neither in [0, classes) nor ignore_index.
template <class T>
double target_weight(const std::int64_t* targets, Index rows, Index classes,
                     const CrossEntropyOptions<T>& options);

// Returns the sum of the losses of logits (rows, classes), not divided. d_logits, of the same shape, receives
// its gradient divided by `divisor`: target_weight for a mean, that of all parts if a step is made of
// several, 1 for a sum. A divisor of 0, if no target counts, gives zeros. d_logits may be logits. losses,
// (rows,) or null, receives the loss of each row. Throws as target_weight does, before anything is written.
template <class T>
double cross_entropy(const Elements<T>& logits, Index rows, Index classes, const std::int64_t* targets,
                     const CrossEntropyOptions<T>& options, double divisor,
                     const MutableElements<T>& d_logits, double* losses = nullptr);

// The same for dense arrays; without d_logits, which may be null, for the loss alone.
template <class T>
double cross_entropy(const T* logits, Index rows, Index classes, const std::int64_t* targets,
                     const CrossEntropyOptions<T>& options, double divisor, T* d_logits,
                     double* losses = nullptr);

}  // namespace blasformer
