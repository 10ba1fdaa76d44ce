#include "layers/linear.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/batch_invariance.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/half_kernels.h"
#include "kernels/row_kernels.h"
#include "layers/destination.h"
#include "layers/matrix_product.h"

namespace blasformer {

namespace {

constexpr Index kFewRowsOutputs = 64;  // outputs per task

// Whether the weights should be read as they lie rather than packed for BLAS. Short sums favour BLAS. Other
// sums: where they must not depend on the number of rows, all are those of matrix_product.
template <class T>
bool has_few_rows(Index rows, Index in_features, bool transposed) {
  if (batch_invariant()) return false;
  const Index few = row_kernels<T>().few_rows;
  if (transposed) return rows <= 4;
  return rows <= (in_features < 128 ? few / 4 : in_features < 256 ? few / 2 : few);
}

// Estimated time of a matrix product on one core, in nanoseconds.
template <class T>
double product_time(Index m, Index n, Index k) {
  const double flops_per_nanosecond = sizeof(T) == 4 ? 100 : 50;
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) /
         flops_per_nanosecond;
}

// Calls run(first_output, outputs) for each task of a product of few rows.
template <class T, class Run>
void each_few_rows_task(Index rows, Index in_features, Index out_features, const Run& run) {
  const Work work(product_time<T>(std::max<Index>(rows, 4), out_features, in_features),
                  rows * in_features * Index{sizeof(T)});
  parallel_for(ceil_div(out_features, kFewRowsOutputs), work, [&](Index task, int) {
    const Index first = task * kFewRowsOutputs;
    run(first, std::min(kFewRowsOutputs, out_features - first));
  });
}

}  // namespace

template <class T>
void linear(const T* x, Index rows, Index in_features, WeightView<T> weight, const T* bias,
            Index out_features, T* y) {
  if (rows == 0 || out_features == 0) return;
  if (has_few_rows<T>(rows, in_features, weight.transposed)) {
    const RowKernels<T>& kernels = row_kernels<T>();
    const auto kernel = weight.transposed ? kernels.few_rows_linear_transposed : kernels.few_rows_linear;
    each_few_rows_task<T>(rows, in_features, out_features, [&](Index first, Index count) {
      kernel(x, rows, in_features, weight.data + first * (weight.transposed ? 1 : weight.stride),
             weight.stride, bias ? bias + first : nullptr, count, y + first, out_features);
    });
    return;
  }
  // weight^T is (in_features, out_features): dense rows of weight are its columns.
  const MatrixView<T> right{weight.data, weight.transposed ? weight.stride : 1,
                            weight.transposed ? 1 : weight.stride};
  matrix_product(rows, out_features, in_features, {x, in_features, 1}, right, bias, Write::replace, y,
                 out_features);
}

template void linear(const float*, Index, Index, WeightView<float>, const float*, Index, float*);
template void linear(const double*, Index, Index, WeightView<double>, const double*, Index, double*);

void linear(const float* x, Index rows, Index in_features, const std::uint16_t* weight, const float* bias,
            Index out_features, float* y) {
  if (rows == 0 || out_features == 0) return;
  if (has_few_rows<float>(rows, in_features, false)) {
    each_few_rows_task<float>(rows, in_features, out_features, [&](Index first, Index count) {
      half_kernels().few_rows_linear_bfloat16(x, rows, in_features, weight + first * in_features, in_features,
                                              bias ? bias + first : nullptr, count, y + first, out_features);
    });
    return;
  }
  matrix_product(rows, out_features, in_features, {x, in_features, 1},
                 MatrixView<std::uint16_t>{weight, 1, in_features}, bias, Write::replace, y, out_features);
}

template <class T>
void linear(const T* x, Index rows, Index in_features, const LayerWeight<T>& weight, const T* bias,
            Index out_features, T* y) {
  const auto packed =
      weight.packed.of(weight.data, in_features, weight.all_rows, rows, out_features, weight.pass);
  if (packed != nullptr && packed->can_begin_at(weight.first_row))
    return packed->product(rows, out_features, {x, in_features, 1}, weight.first_row, bias, y, out_features);
  if constexpr (std::is_same_v<T, float>) {
    const Tensor<std::uint16_t>& held = weight.packed.bfloat16();
    if (!held.empty())
      return linear(x, rows, in_features, held.data() + weight.first_row * in_features, bias, out_features,
                    y);
  }
  linear(x, rows, in_features, weight.data + weight.first_row * in_features, bias, out_features, y);
}

template void linear(const float*, Index, Index, const LayerWeight<float>&, const float*, Index, float*);
template void linear(const double*, Index, Index, const LayerWeight<double>&, const double*, Index, double*);

template <class T>
void linear_input_gradient(const T* d_y, Index d_y_stride, Index rows, Index out_features, const T* weight,
                           Index in_features, T* d_x, Write write) {
  if (rows == 0 || in_features == 0) return;
  if (has_few_rows<T>(rows, out_features, true) && write == Write::replace && d_y_stride == out_features)
    return linear(d_y, rows, out_features, WeightView<T>{weight, in_features, true},
                  static_cast<const T*>(nullptr), in_features, d_x);
  matrix_product<T>(rows, in_features, out_features, {d_y, d_y_stride, 1}, {weight, in_features, 1}, nullptr,
                    write, d_x, in_features);
}

namespace {

// sums = the sums of the columns of x.
template <class T>
void sum_rows(const T* x, Index stride, Index rows, Index columns, T* sums) {
  std::fill_n(sums, columns, T(0));
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {  // what is summed up is read and written once for four rows
    const T* const a = x + r * stride;
    const T *const b = a + stride, *const c = b + stride, *const d = c + stride;
    for (Index i = 0; i < columns; ++i) sums[i] += (a[i] + b[i]) + (c[i] + d[i]);
  }
  for (; r < rows; ++r) {
    const T* const source = x + r * stride;
    for (Index i = 0; i < columns; ++i) sums[i] += source[i];
  }
}

// sums (+)= the sums of the columns of x, in blocks of rows: long sums keep their accuracy, and each core
// adds up rows that it has written most likely. This takes 0.2 to 1.1 % of linear_backward (Zen 4, AVX-512):
// forming the sums while x is packed could not save more.
template <class T>
void sum_columns(const T* x, Index stride, Index rows, Index columns, T* sums, Write write) {
  constexpr Index block_rows = 64, width = 256;
  const Index blocks = ceil_div(rows, block_rows), parts = ceil_div(columns, width);
  const double work = static_cast<double>(rows * columns) * 0.05 * sizeof(T);
  const SharedWorkspace workspace(blocks * columns * Index{sizeof(T)});
  T* const of_blocks = static_cast<T*>(workspace.data());
  parallel_for(blocks * parts, work, [&](Index task, int) {
    const Index block = task / parts, row = block * block_rows, first = task % parts * width;
    sum_rows(x + row * stride + first, stride, std::min(block_rows, rows - row),
             std::min(width, columns - first), of_blocks + block * columns + first);
  });
  parallel_for(parts, work / block_rows, [&](Index part, int) {
    const Index first = part * width, count = std::min(width, columns - first);
    T total[width] = {};
    if (write == Write::add) std::copy_n(sums + first, count, total);
    for (Index block = 0; block < blocks; ++block) {
      for (Index i = 0; i < count; ++i) total[i] += of_blocks[block * columns + first + i];
    }
    std::copy_n(total, count, sums + first);
  });
}

}  // namespace

template <class T>
void linear_weight_gradient(const T* x, const T* d_y, Index d_y_stride, Index rows, Index in_features,
                            Index out_features, T* d_weight, T* d_bias, Write write) {
  if (d_weight != nullptr) {
    matrix_product<T>(out_features, in_features, rows, {d_y, 1, d_y_stride}, {x, in_features, 1}, nullptr,
                      write, d_weight, in_features);
  }
  if (d_bias != nullptr) sum_columns(d_y, d_y_stride, rows, out_features, d_bias, write);
}

template void linear_input_gradient(const float*, Index, Index, Index, const float*, Index, float*, Write);
template void linear_input_gradient(const double*, Index, Index, Index, const double*, Index, double*, Write);
template void linear_weight_gradient(const float*, const float*, Index, Index, Index, Index, float*, float*,
                                     Write);
template void linear_weight_gradient(const double*, const double*, Index, Index, Index, Index, double*,
                                     double*, Write);

template <class T>
Linear<T>::Linear(Index in_features, Index out_features, bool with_bias) {
  require(in_features > 0, "in_features must be positive, got ", in_features);
  require(out_features > 0, "out_features must be positive, got ", out_features);
  weight = Tensor<T>({out_features, in_features});
  if (with_bias) bias = Tensor<T>({out_features});
}

template <class T>
void Linear<T>::initialise(Initialiser& random) {
  const double bound = 1 / std::sqrt(static_cast<double>(in_features()));
  random.uniform(weight, bound);
  if (!bias.empty()) random.uniform(bias, bound);
}

template <class T>
Tensor<T> Linear<T>::forward(const Tensor<T>& x, Saved* saved, std::optional<std::uint64_t> seed, Pass pass,
                             Tensor<T>* out) const {
  require(x.rank() > 0 && x.shape().back() == in_features(), "x must have the shape (..., ", in_features(),
          "), got ", shape_text(x.shape()));
  Shape shape = x.shape();
  shape.back() = out_features();
  Tensor<T> y = memory_for(std::move(shape), out);
  linear(x.data(), x.size() / in_features(), in_features(),
         LayerWeight<T>{weight.data(), out_features(), 0, packed, pass}, bias.data(), out_features(),
         y.data());
  if (adapter) adapter->add(x.data(), x.size() / in_features(), seed, y.data(), out_features());
  if (saved != nullptr) *saved = {x, seed};
  return y;
}

template <class T>
void Linear<T>::input_gradient(const Tensor<T>& d_y, std::optional<std::uint64_t> seed,
                               Tensor<T>& d_x) const {
  const Index rows = d_x.size() / in_features();
  linear_input_gradient(d_y.data(), out_features(), rows, out_features(), weight.data(), in_features(),
                        d_x.data(), Write::replace);
  if (adapter) adapter->add_input_gradient(d_y.data(), out_features(), rows, seed, d_x.data());
}

template <class T>
void Linear<T>::parameter_gradients(const Tensor<T>& x, std::optional<std::uint64_t> seed,
                                    const Tensor<T>& d_y, Linear& gradients, Write write) const {
  const Index rows = x.size() / in_features();
  linear_weight_gradient(x.data(), d_y.data(), out_features(), rows, in_features(), out_features(),
                         gradients.weight.data(), gradients.bias.data(), write);
  if (adapter)
    adapter->parameter_gradients(x.data(), rows, seed, d_y.data(), out_features(), *gradients.adapter, write);
}

template <class T>
Tensor<T> Linear<T>::backward(const Saved& saved, const Tensor<T>& d_y, Linear& gradients,
                              Write write) const {
  parameter_gradients(saved.input, saved.seed, d_y, gradients, write);
  Tensor<T> d_x(saved.input.shape());
  input_gradient(d_y, saved.seed, d_x);
  return d_x;
}

template struct Linear<float>;
template struct Linear<double>;

}  // namespace blasformer
