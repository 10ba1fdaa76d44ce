#include "layers/low_rank.h"

#include <algorithm>
#include <cmath>

#include "core/batch_invariance.h"
#include "core/blas.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/matrix_product.h"

namespace blasformer {

namespace {

// c (m, n) = beta c + alpha * a op(b), for a (m, k) with small k or small n: cut into rows. beta is 0 or 1.
template <class T>
void add_product(Index m, Index n, Index k, T alpha, const T* a, Index a_stride, blas::Transpose transpose_b,
                 const T* b, Index b_stride, T beta, T* c, Index c_stride) {
  if (batch_invariant()) {
    Tensor<T> scaled({m, k});
    for (Index row = 0; row < m; ++row)
      std::transform(a + row * a_stride, a + row * a_stride + k, scaled.data() + row * k,
                     [alpha](T x) { return alpha * x; });
    const MatrixView<T> right =
        transpose_b == blas::Transpose::yes ? MatrixView<T>{b, 1, b_stride} : MatrixView<T>{b, b_stride, 1};
    return matrix_product<T>(m, n, k, {scaled.data(), k, 1}, right, nullptr,
                             beta == T(0) ? Write::replace : Write::add, c, c_stride);
  }
  constexpr Index rows = 128;
  const double work = static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) * 0.04;
  parallel_for(ceil_div(m, rows), work, [&](Index task, int) {
    const Index first = task * rows;
    blas::gemm(blas::Transpose::no, transpose_b, std::min(rows, m - first), n, k, alpha, a + first * a_stride,
               a_stride, b, b_stride, beta, c + first * c_stride, c_stride);
  });
}

}  // namespace

template <class T>
LowRank<T>::LowRank(Index in_features, Index out_features, Index rank, double scale_, double dropout_p_,
                    Initialiser& random)
    : scale(scale_), dropout_p(dropout_p_) {
  require(rank > 0, "rank must be positive, got ", rank);
  require_probability("dropout", dropout_p);
  a = Tensor<T>({rank, in_features});
  b = Tensor<T>::full({out_features, rank}, T(0));
  random.uniform(a, 1 / std::sqrt(static_cast<double>(in_features)));
}

template <class T>
Tensor<T> LowRank<T>::dropped(const T* x, Index rows, std::uint64_t seed) const {
  Tensor<T> result({rows, in_features()});
  dropout(x, result.size(), dropout_p, seed, result.data());
  return result;
}

template <class T>
void LowRank<T>::add(const T* x, Index rows, std::optional<std::uint64_t> seed, T* y, Index y_stride) const {
  if (merged) return;
  const Tensor<T> kept = drops(seed) ? dropped(x, rows, *seed) : Tensor<T>();
  Tensor<T> low({rows, rank()});
  linear<T>(kept.empty() ? x : kept.data(), rows, in_features(), a.data(), nullptr, rank(), low.data());
  add_product(rows, out_features(), rank(), static_cast<T>(scale), low.data(), rank(), blas::Transpose::yes,
              b.data(), rank(), T(1), y, y_stride);
}

template <class T>
Tensor<T> LowRank<T>::low_gradient(const T* d_y, Index d_y_stride, Index rows) const {
  Tensor<T> d_low({rows, rank()});
  add_product(rows, rank(), out_features(), static_cast<T>(scale), d_y, d_y_stride, blas::Transpose::no,
              b.data(), rank(), T(0), d_low.data(), rank());
  return d_low;
}

template <class T>
void LowRank<T>::add_input_gradient(const T* d_y, Index d_y_stride, Index rows,
                                    std::optional<std::uint64_t> seed, T* d_x) const {
  if (merged) return;
  const Tensor<T> d_low = low_gradient(d_y, d_y_stride, rows);
  const auto add = [&](T beta, T* target) {
    add_product(rows, in_features(), rank(), T(1), d_low.data(), rank(), blas::Transpose::no, a.data(),
                in_features(), beta, target, in_features());
  };
  if (!drops(seed)) return add(T(1), d_x);
  Tensor<T> d_kept({rows, in_features()});
  add(T(0), d_kept.data());
  dropout(d_kept.data(), d_kept.size(), dropout_p, *seed, d_x, d_x);
}

template <class T>
void LowRank<T>::parameter_gradients(const T* x, Index rows, std::optional<std::uint64_t> seed, const T* d_y,
                                     Index d_y_stride, LowRank& gradients, Write write) const {
  if (merged) {
    for (Tensor<T>* gradient : {&gradients.a, &gradients.b})
      if (write == Write::replace) std::fill_n(gradient->data(), gradient->size(), T(0));
    return;
  }
  const Tensor<T> kept = drops(seed) ? dropped(x, rows, *seed) : Tensor<T>();
  const T* const used = kept.empty() ? x : kept.data();
  if (!gradients.a.empty()) {
    const Tensor<T> d_low = low_gradient(d_y, d_y_stride, rows);
    linear_weight_gradient<T>(used, d_low.data(), rank(), rows, in_features(), rank(), gradients.a.data(),
                              nullptr, write);
  }
  if (!gradients.b.empty()) {
    Tensor<T> low({rows, rank()});
    linear<T>(used, rows, in_features(), a.data(), nullptr, rank(), low.data());
    std::for_each_n(low.data(), low.size(), [this](T& element) { element *= static_cast<T>(scale); });
    linear_weight_gradient<T>(low.data(), d_y, d_y_stride, rows, rank(), out_features(), gradients.b.data(),
                              nullptr, write);
  }
}

template <class T>
void LowRank<T>::merge(T* weight) {
  if (!merged) add_to_weight(1, weight);
  merged = true;
}

template <class T>
void LowRank<T>::unmerge(T* weight) {
  if (merged) add_to_weight(-1, weight);
  merged = false;
}

template <class T>
void LowRank<T>::add_to_weight(double factor, T* weight) const {
  add_product(out_features(), in_features(), rank(), static_cast<T>(factor * scale), b.data(), rank(),
              blas::Transpose::no, a.data(), in_features(), T(1), weight, in_features());
}

template struct LowRank<float>;
template struct LowRank<double>;

}  // namespace blasformer
