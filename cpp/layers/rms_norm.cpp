#include "layers/rms_norm.h"

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
void rms_norm(const Elements<T>& x, Index rows, Index features, const T* weight, double eps,
              const MutableElements<T>& y, T* reciprocal_rms) {
  const auto kernel = row_kernels<T>().rms_norm;
  const double nanoseconds = sizeof(T) == 4 ? 0.3 : 0.6;
  for_each_row_block(x, rows, features, y, nanoseconds,
                     [=](const T* source, Index first, Index count, T* target) {
                       kernel(source, count, features, weight, eps, target,
                              reciprocal_rms ? reciprocal_rms + first : nullptr);
                     });
}

template void rms_norm(const Elements<float>&, Index, Index, const float*, double,
                       const MutableElements<float>&, float*);
template void rms_norm(const Elements<double>&, Index, Index, const double*, double,
                       const MutableElements<double>&, double*);

template <class T>
void rms_norm_backward(const Elements<T>& x, const T* reciprocal_rms, const Elements<T>& d_y, Index rows,
                       Index features, const T* weight, const MutableElements<T>& d_x, T* d_weight,
                       Write write, const T* residual) {
  const auto kernel = gradient_kernels<T>().rms_norm;
  const double nanoseconds = sizeof(T) == 4 ? 0.7 : 1.4;
  const RowBlocks blocks = summed_blocks(rows, features, kRowBlockElements);
  ParameterSums<T> weight_sums(d_weight, blocks, features);
  for_each_row_block(blocks, x, d_y, features, d_x, nanoseconds,
                     [&](const T* source, const T* gradient, Index block, T* target) {
                       const Index first = blocks.first(block);
                       kernel(source, reciprocal_rms + first, gradient, blocks.rows_of(block), features,
                              weight, residual ? residual + first * features : nullptr, target,
                              weight_sums.of_block(block));
                     });
  weight_sums.write_gradient(write);
}

template void rms_norm_backward(const Elements<float>&, const float*, const Elements<float>&, Index, Index,
                                const float*, const MutableElements<float>&, float*, Write, const float*);
template void rms_norm_backward(const Elements<double>&, const double*, const Elements<double>&, Index, Index,
                                const double*, const MutableElements<double>&, double*, Write, const double*);

template <class T>
RMSNorm<T>::RMSNorm(Shape normalized_shape_, double eps_, bool with_weight)
    : normalized_shape(std::move(normalized_shape_)), eps(eps_) {
  require_normalized_shape(normalized_shape);
  require(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, got ", eps);
  if (with_weight) weight = Tensor<T>(normalized_shape);
}

template <class T>
void RMSNorm<T>::initialise(Initialiser&) {
  std::fill_n(weight.data(), weight.size(), T{1});
}

template <class T>
Tensor<T> RMSNorm<T>::forward(const Tensor<T>& x, Saved* saved, Tensor<T>* out) const {
  const Shape outer = outer_shape(x.shape(), normalized_shape);
  const Index rows = element_count(outer), features = element_count(normalized_shape);
  Tensor<T> y = memory_for(x.shape(), out);
  if (saved != nullptr) *saved = {x, Tensor<T>(outer)};
  rms_norm(x.data(), rows, features, weight.data(), eps, y.data(),
           saved != nullptr ? saved->reciprocal_rms.data() : nullptr);
  return y;
}

template <class T>
Tensor<T> RMSNorm<T>::backward(const Saved& saved, const Tensor<T>& d_y, RMSNorm& gradients, Write write,
                               const Tensor<T>* residual) const {
  Tensor<T> d_x(d_y.shape());
  rms_norm_backward(saved.input.data(), saved.reciprocal_rms.data(), d_y.data(), saved.reciprocal_rms.size(),
                    element_count(normalized_shape), weight.data(), d_x.data(), gradients.weight.data(),
                    write, residual ? residual->data() : nullptr);
  return d_x;
}

template struct RMSNorm<float>;
template struct RMSNorm<double>;

}  // namespace blasformer
