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

template void add_residual(const Tensor<float>&, double, std::optional<std::uint64_t>, Tensor<float>&);
template void add_residual(const Tensor<double>&, double, std::optional<std::uint64_t>, Tensor<double>&);

}  // namespace blasformer
