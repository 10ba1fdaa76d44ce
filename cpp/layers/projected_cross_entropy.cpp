#include "layers/projected_cross_entropy.h"

#include <algorithm>
#include <vector>

#include "core/tensor.h"
#include "core/thread_pool.h"
#include "layers/linear.h"

namespace blasformer {

namespace {

// Logits of so many rows are formed at a time: few enough that they take little memory, enough that the
// gradient of the weights is not written too often.
Index rows_at_a_time(Index classes) {
  constexpr Index logits = Index{1} << 24, least_rows = 512;
  return std::max(least_rows, logits / std::max<Index>(classes, 1));
}

template <class T>
void copy_rows(Index count, Index features, const auto& source, const auto& target) {
  parallel_for(ceil_div(count, 32), 0.2 * static_cast<double>(count * features), [&](Index task, int) {
    for (Index i = task * 32; i < std::min(count, (task + 1) * 32); ++i)
      std::copy_n(source(i), features, target(i));
  });
}

}  // namespace

template <class T>
double projected_cross_entropy(const T* x, Index rows, const ClassProjection<T>& projection,
                               const std::int64_t* targets, const CrossEntropyOptions<T>& options,
                               double divisor, const ProjectedGradients<T>& gradients) {
  target_weight(targets, rows, projection.classes, options);
  const Index features = projection.features, classes = projection.classes;
  std::vector<Index> counted;
  for (Index row = 0; row < rows; ++row) {
    if (targets[row] != options.ignore_index) counted.push_back(row);
  }
  const auto count = static_cast<Index>(counted.size());
  const bool all = count == rows;
  const bool with_gradients = gradients.x || gradients.weight || gradients.bias;
  if (gradients.x && !all) std::fill_n(gradients.x, rows * features, T{0});

  const Index most = std::min(count, rows_at_a_time(classes));
  Tensor<T> logits({most, classes}), gathered, d_gathered;
  if (!all) gathered = Tensor<T>({most, features});
  if (!all && gradients.x) d_gathered = Tensor<T>({most, features});
  std::vector<std::int64_t> own_targets(static_cast<std::size_t>(most));
  double loss = 0;
  Write write = gradients.write;
  // Once at least: without any rows the gradients of the parameters are zeros.
  for (Index first = 0; first < std::max<Index>(count, 1); first += std::max<Index>(most, 1)) {
    const Index n = std::min(most, count - first);
    const Index* const row = counted.data() + first;
    const T* part = x + first * features;
    if (!all) {
      copy_rows<T>(
          n, features, [&](Index i) { return x + row[i] * features; },
          [&](Index i) { return gathered.data() + i * features; });
      part = gathered.data();
    }
    std::transform(row, row + n, own_targets.begin(), [&](Index r) { return targets[r]; });
    projection.apply(part, n, logits.data());
    loss += cross_entropy(logits.data(), n, classes, own_targets.data(), options, divisor,
                          with_gradients ? logits.data() : nullptr);
    if (gradients.x) {
      T* const d_part = all ? gradients.x + first * features : d_gathered.data();
      linear_input_gradient(logits.data(), classes, n, classes, projection.weight, features, d_part,
                            Write::replace);
      if (!all)
        copy_rows<T>(
            n, features, [&](Index i) { return d_part + i * features; },
            [&](Index i) { return gradients.x + row[i] * features; });
    }
    linear_weight_gradient(part, logits.data(), classes, n, features, classes, gradients.weight,
                           gradients.bias, write);
    write = Write::add;
  }
  return loss;
}

template <class T>
void ClassProjection<T>::apply(const T* x, Index rows, T* logits) const {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (bfloat16 != nullptr) return linear(x, rows, features, bfloat16, bias, classes, logits);
  }
  linear(x, rows, features, weight, bias, classes, logits);
}

template struct ClassProjection<float>;
template struct ClassProjection<double>;
template double projected_cross_entropy(const float*, Index, const ClassProjection<float>&,
                                        const std::int64_t*, const CrossEntropyOptions<float>&, double,
                                        const ProjectedGradients<float>&);
template double projected_cross_entropy(const double*, Index, const ClassProjection<double>&,
                                        const std::int64_t*, const CrossEntropyOptions<double>&, double,
                                        const ProjectedGradients<double>&);

}  // namespace blasformer
