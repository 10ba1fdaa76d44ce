#include "layers/dropout.h"

#include <algorithm>

#include "core/require.h"
#include "core/thread_pool.h"
#include "kernels/dropout_kernels.h"
#include "layers/destination.h"

namespace blasformer {

template <class T>
void dropout(const T* x, Index size, double p, std::uint64_t seed, T* y, const T* residual) {
  constexpr Index kElementsPerTask = 16384;
  const double nanoseconds = residual ? 0.6 : 0.4;
  const auto kernel = dropout_kernels<T>().dropout;
  if (p == 1) {  // 2^32, which no word reaches, does not fit into one
    residual ? std::copy_n(residual, size, y) : std::fill_n(y, size, T{0});
    return;
  }
  const auto threshold = static_cast<std::uint32_t>(p * 0x1p32);
  const T scale = static_cast<T>(1 / (1 - p));
  parallel_for(
      ceil_div(size, kElementsPerTask), nanoseconds * static_cast<double>(size), [&](Index task, int) {
        const Index first = task * kElementsPerTask;
        kernel(x, first, std::min(size, first + kElementsPerTask), threshold, scale, seed, residual, y);
      });
}

void require_probability(const char* name, double p) {
  require(p >= 0 && p <= 1, name, " must lie between 0 and 1, got ", p);
}

template <class T>
Dropout<T>::Dropout(double p_) : p(p_) {
  require_probability("p", p);
}

template <class T>
Tensor<T> Dropout<T>::forward(const Tensor<T>& x, std::optional<std::uint64_t> seed, Saved* saved,
                              Tensor<T>* out) const {
  if (saved != nullptr) saved->seed = seed;
  Tensor<T> y = memory_for(x.shape(), out);
  if (seed && p > 0) {
    dropout(x.data(), x.size(), p, *seed, y.data());
  } else {
    std::copy_n(x.data(), x.size(), y.data());
  }
  return y;
}

template <class T>
Tensor<T> Dropout<T>::backward(const Saved& saved, const Tensor<T>& d_y, Dropout&, Write) const {
  return forward(d_y, saved.seed);
}

template void dropout(const float*, Index, double, std::uint64_t, float*, const float*);
template void dropout(const double*, Index, double, std::uint64_t, double*, const double*);
template struct Dropout<float>;
template struct Dropout<double>;

}  // namespace blasformer
