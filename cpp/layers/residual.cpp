#include "layers/residual.h"

#include <algorithm>

#include "core/thread_pool.h"
#include "layers/dropout.h"

namespace blasformer {

namespace {

template <class T>
void add(const T* x, Index size, T* y) {
  constexpr Index kElementsPerTask = 16384;
  constexpr double kNanosecondsPerByte = 0.1;
  const double work = kNanosecondsPerByte * static_cast<double>(size) * sizeof(T);
  parallel_for(ceil_div(size, kElementsPerTask), work, [&](Index task, int) {
    const Index end = std::min(size, (task + 1) * kElementsPerTask);
    for (Index i = task * kElementsPerTask; i < end; ++i) y[i] += x[i];
  });
}

}  // namespace

template <class T>
void add_residual(const Tensor<T>& x, double dropout_p, std::optional<std::uint64_t> seed,
                  Tensor<T>& branch) {
  if (seed && dropout_p > 0) {
    dropout(branch.data(), branch.size(), dropout_p, *seed, branch.data(), x.data());
  } else {
    add(x.data(), x.size(), branch.data());
  }
}

template <class T>
Tensor<T> residual_gradient(const Tensor<T>& d_y, double dropout_p, std::optional<std::uint64_t> seed) {
  if (!seed || dropout_p == 0) return d_y;
  Tensor<T> d_branch(d_y.shape());
  dropout(d_y.data(), d_y.size(), dropout_p, *seed, d_branch.data());
  return d_branch;
}

template <class T>
void add_to(const Tensor<T>& x, Tensor<T>& sum) {
  add(x.data(), x.size(), sum.data());
}

template Tensor<float> residual_gradient(const Tensor<float>&, double, std::optional<std::uint64_t>);
template Tensor<double> residual_gradient(const Tensor<double>&, double, std::optional<std::uint64_t>);
template void add_to(const Tensor<float>&, Tensor<float>&);
template void add_to(const Tensor<double>&, Tensor<double>&);
template void add_residual(const Tensor<float>&, double, std::optional<std::uint64_t>, Tensor<float>&);
template void add_residual(const Tensor<double>&, double, std::optional<std::uint64_t>, Tensor<double>&);

}  // namespace blasformer
