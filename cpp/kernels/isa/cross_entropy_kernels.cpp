#include "kernels/cross_entropy_kernels.h"

#include <math.h>  // plain functions, where <cmath> would bring inline ones that the linker may share

#include "kernels/isa/rows.h"
#include "kernels/isa/table.h"
#include "kernels/isa/vector_math.h"

namespace blasformer::BLASFORMER_ISA {

namespace {

// The sum of weight (x - m), to which classes of weight 0 contribute nothing, not even where x is infinite.
template <class T>
double weighted_sum(const T* x, Index classes, const T* weight, Vector<T> m) {
  using S = Simd<T>;
  return sum<T>(classes, [=](Index i, Index n) {
    const Vector<T> shifted = load_lanes(x + i, n) - m;
    if (!weight) return n == S::lanes ? shifted : S::select(S::first(n), shifted, S::zero());
    const Vector<T> w = load_lanes(weight + i, n);
    return S::select(S::equal(w, S::zero()), S::zero(), w * shifted);
  });
}

// With m the largest logit and Z = sum e^(x - m), -log softmax(x)[c] is log Z - (x[c] - m). The loss is
//   hit (log Z - (x[target] - m)) + spread sum_c w[c] (log Z - (x[c] - m)),
// with hit = (1 - smoothing) w[target] and spread = smoothing / classes; its gradient is
//   (hit + spread sum(w)) softmax(x)[c] - spread w[c] - (hit, where c is the target).
template <class T>
void cross_entropy(const T* logits, const std::int64_t* targets, Index rows, Index classes,
                   const CrossEntropyTerms<T>& terms, double scale, double* losses, T* d_logits) {
  using S = Simd<T>;
  const double spread = terms.label_smoothing / static_cast<double>(classes);
  for (Index row = 0; row < rows; ++row) {
    const T* x = logits + row * classes;
    T* d_x = d_logits ? d_logits + row * classes : nullptr;
    const std::int64_t target = targets[row];
    if (target == terms.ignore_index) {
      losses[row] = 0;
      if (d_x) for_each_vector<T>(classes, [=](Index i, Index n) { store_lanes(d_x + i, S::zero(), n); });
      continue;
    }
    const double target_weight = terms.weight ? static_cast<double>(terms.weight[target]) : 1;
    const double hit = (1 - terms.label_smoothing) * target_weight;

    const T largest_logit = largest(x, classes);
    const Vector<T> m = S::broadcast(largest_logit);
    const double total = sum<T>(classes, [=](Index i, Index n) {
      const Vector<T> e = exp_nonpositive<T>(load_lanes(x + i, n) - m);
      return n == S::lanes ? e : S::select(S::first(n), e, S::zero());
    });
    const double log_total = ::log(total);
    const double of_target = static_cast<double>(x[target]) - static_cast<double>(largest_logit);
    losses[row] = hit == 0 ? 0 : hit * (log_total - of_target);
    if (spread > 0) {
      losses[row] += spread * (terms.weight_sum * log_total - weighted_sum(x, classes, terms.weight, m));
    }
    if (!d_x) continue;

    const Vector<T> factor = S::broadcast(static_cast<T>(scale * (hit + spread * terms.weight_sum) / total));
    const Vector<T> minus_spread = S::broadcast(static_cast<T>(-scale * spread));
    const T* weight = terms.weight;
    const bool smooth = spread > 0;
    for_each_vector<T>(classes, [=](Index i, Index n) {
      Vector<T> d = exp_nonpositive<T>(load_lanes(x + i, n) - m) * factor;
      if (smooth) d = weight ? S::fma(minus_spread, load_lanes(weight + i, n), d) : d + minus_spread;
      store_lanes(d_x + i, d, n);
    });
    d_x[target] -= static_cast<T>(scale * hit);
  }
}

template <class T>
constexpr CrossEntropyKernels<T> kCrossEntropyKernels = {.cross_entropy = cross_entropy<T>};

}  // namespace

template <>
const CrossEntropyKernels<float>& table() {
  return kCrossEntropyKernels<float>;
}
template <>
const CrossEntropyKernels<double>& table() {
  return kCrossEntropyKernels<double>;
}

}  // namespace blasformer::BLASFORMER_ISA
