#include "layers/layer_norm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/require.h"
#include "kernels/gradient_kernels.h"
#include "kernels/row_kernels.h"
#include "layers/destination.h"
#include "layers/normalized_shape.h"
#include "layers/parameter_sums.h"
#include "layers/row_blocks.h"

namespace blasformer {

template <class T>
void layer_norm(const Elements<T>& x, Index rows, Index features, const T* weight, const T* bias, double eps,
                const MutableElements<T>& y, T* mean, T* reciprocal_std) {
  const auto kernel = row_kernels<T>().layer_norm;
  const double nanoseconds =
      20 / static_cast<double>(std::max<Index>(features, 1)) + (sizeof(T) == 4 ? 0.25 : 0.45);
  for_each_row_block(
      x, rows, features, y, nanoseconds, [=](const T* source, Index first, Index count, T* target) {
        kernel(source, count, features, weight, bias, eps, target, mean ? mean + first : nullptr,
               reciprocal_std ? reciprocal_std + first : nullptr);
      });
}

template void layer_norm(const Elements<float>&, Index, Index, const float*, const float*, double,
                         const MutableElements<float>&, float*, float*);
template void layer_norm(const Elements<double>&, Index, Index, const double*, const double*, double,
                         const MutableElements<double>&, double*, double*);

template <class T>
void layer_norm_backward(const Elements<T>& x, const T* mean, const T* reciprocal_std, const Elements<T>& d_y,
                         Index rows, Index features, const T* weight, const MutableElements<T>& d_x,
                         T* d_weight, T* d_bias, Write write, const T* residual) {
  const auto kernel = gradient_kernels<T>().layer_norm;
  const double nanoseconds = sizeof(T) == 4 ? 0.8 : 1.6;
  const RowBlocks blocks = summed_blocks(rows, features, kRowBlockElements);
  ParameterSums<T> weight_sums(d_weight, blocks, features), bias_sums(d_bias, blocks, features);
  for_each_row_block(blocks, x, d_y, features, d_x, nanoseconds,
                     [&](const T* source, const T* gradient, Index block, T* target) {
                       const Index first = blocks.first(block);
                       kernel(source, mean + first, reciprocal_std + first, gradient, blocks.rows_of(block),
                              features, weight, residual ? residual + first * features : nullptr, target,
                              weight_sums.of_block(block), bias_sums.of_block(block));
                     });
  weight_sums.write_gradient(write);
  bias_sums.write_gradient(write);
}

template void layer_norm_backward(const Elements<float>&, const float*, const float*, const Elements<float>&,
                                  Index, Index, const float*, const MutableElements<float>&, float*, float*,
                                  Write, const float*);
template void layer_norm_backward(const Elements<double>&, const double*, const double*,
                                  const Elements<double>&, Index, Index, const double*,
                                  const MutableElements<double>&, double*, double*, Write, const double*);

template <class T>
LayerNorm<T>::LayerNorm(Shape normalized_shape_, double eps_, bool with_weight, bool with_bias)
    : normalized_shape(std::move(normalized_shape_)), eps(eps_) {
  require_normalized_shape(normalized_shape);
  require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got ", eps);
  if (with_weight) weight = Tensor<T>(normalized_shape);
  if (with_weight && with_bias) bias = Tensor<T>(normalized_shape);
}

template <class T>
void LayerNorm<T>::initialise(Initialiser&) {
  std::fill_n(weight.data(), weight.size(), T{1});
  std::fill_n(bias.data(), bias.size(), T{0});
}

template <class T>
Tensor<T> LayerNorm<T>::forward(const Tensor<T>& x, Saved* saved, Tensor<T>* out) const {
  const Shape outer = outer_shape(x.shape(), normalized_shape);
  const Index rows = element_count(outer), features = element_count(normalized_shape);
  Tensor<T> y = memory_for(x.shape(), out);
  if (saved != nullptr) *saved = {x, Tensor<T>(outer), Tensor<T>(outer)};
  layer_norm(x.data(), rows, features, weight.data(), bias.data(), eps, y.data(),
             saved != nullptr ? saved->mean.data() : nullptr,
             saved != nullptr ? saved->reciprocal_std.data() : nullptr);
  return y;
}

template <class T>
Tensor<T> LayerNorm<T>::backward(const Saved& saved, const Tensor<T>& d_y, LayerNorm& gradients, Write write,
                                 const Tensor<T>* residual) const {
  Tensor<T> d_x(d_y.shape());
  layer_norm_backward(saved.input.data(), saved.mean.data(), saved.reciprocal_std.data(), d_y.data(),
                      saved.mean.size(), element_count(normalized_shape), weight.data(), d_x.data(),
                      gradients.weight.data(), gradients.bias.data(), write,
                      residual ? residual->data() : nullptr);
  return d_x;
}

template struct LayerNorm<float>;
template struct LayerNorm<double>;

}  // namespace blasformer
