#include "layers/cross_entropy.h"

#include <numeric>
#include <stdexcept>
#include <vector>

#include "core/denormals.h"
#include "core/require.h"
#include "kernels/cross_entropy_kernels.h"
#include "layers/row_blocks.h"

namespace blasformer {

namespace {

template <class T>
constexpr double kNanoseconds = sizeof(T) == 4 ? 1.0 : 2.0;  // per logit

template <class T>
CrossEntropyTerms<T> terms_of(const CrossEntropyOptions<T>& options, Index classes) {
  double weight_sum = static_cast<double>(classes);
  if (options.weight) weight_sum = std::accumulate(options.weight, options.weight + classes, 0.0);
  return {options.ignore_index, options.label_smoothing, options.weight, weight_sum};
}

// Calls for_all(losses, scale) with room for the loss of each row, and adds those up in order.
template <class T, class ForAll>
double summed(const std::int64_t* targets, Index rows, Index classes, const CrossEntropyOptions<T>& options,
              double divisor, double* losses, ForAll for_all) {
  target_weight(targets, rows, classes, options);
  std::vector<double> own;
  if (!losses) {
    own.resize(static_cast<std::size_t>(rows));
    losses = own.data();
  }
  for_all(losses, divisor == 0 ? 0 : 1 / divisor);
  return std::accumulate(losses, losses + rows, 0.0);
}

}  // namespace

template <class T>
double target_weight(const std::int64_t* targets, Index rows, Index classes,
                     const CrossEntropyOptions<T>& options) {
  double total = 0;
  for (Index row = 0; row < rows; ++row) {
    const std::int64_t target = targets[row];
    if (target == options.ignore_index) continue;
    if (target < 0 || target >= classes) {
      fail<std::out_of_range>("targets must be classes in [0, ", classes, ") or ignore_index ",
                              options.ignore_index, ", got ", target, " at position ", row);
    }
    total += options.weight ? static_cast<double>(options.weight[target]) : 1;
  }
  return total;
}

template <class T>
double cross_entropy(const Elements<T>& logits, Index rows, Index classes, const std::int64_t* targets,
                     const CrossEntropyOptions<T>& options, double divisor,
                     const MutableElements<T>& d_logits, double* losses) {
  const auto kernel = cross_entropy_kernels<T>().cross_entropy;
  const CrossEntropyTerms<T> terms = terms_of(options, classes);
  return summed(targets, rows, classes, options, divisor, losses, [&](double* of_rows, double scale) {
    for_each_row_block(logits, rows, classes, d_logits, kNanoseconds<T>,
                       [&](const T* source, Index first, Index count, T* target) {
                         const FlushDenormals guard;
                         kernel(source, targets + first, count, classes, terms, scale, of_rows + first,
                                target);
                       });
  });
}

template <class T>
double cross_entropy(const T* logits, Index rows, Index classes, const std::int64_t* targets,
                     const CrossEntropyOptions<T>& options, double divisor, T* d_logits, double* losses) {
  if (d_logits) {
    return cross_entropy(Elements<T>(logits), rows, classes, targets, options, divisor,
                         MutableElements<T>(d_logits), losses);
  }
  const auto kernel = cross_entropy_kernels<T>().cross_entropy;
  const CrossEntropyTerms<T> terms = terms_of(options, classes);
  return summed(targets, rows, classes, options, divisor, losses, [&](double* of_rows, double scale) {
    const RowBlocks blocks(rows, classes, kRowBlockElements);
    const double work = kNanoseconds<T> * static_cast<double>(rows) * static_cast<double>(classes);
    parallel_for(blocks.count(), work, [&](Index block, int) {
      const FlushDenormals guard;
      const Index first = blocks.first(block);
      kernel(logits + first * classes, targets + first, blocks.rows_of(block), classes, terms, scale,
             of_rows + first, nullptr);
    });
  });
}

template double target_weight(const std::int64_t*, Index, Index, const CrossEntropyOptions<float>&);
template double target_weight(const std::int64_t*, Index, Index, const CrossEntropyOptions<double>&);
template double cross_entropy(const Elements<float>&, Index, Index, const std::int64_t*,
                              const CrossEntropyOptions<float>&, double, const MutableElements<float>&,
                              double*);
template double cross_entropy(const Elements<double>&, Index, Index, const std::int64_t*,
                              const CrossEntropyOptions<double>&, double, const MutableElements<double>&,
                              double*);
template double cross_entropy(const float*, Index, Index, const std::int64_t*,
                              const CrossEntropyOptions<float>&, double, float*, double*);
template double cross_entropy(const double*, Index, Index, const std::int64_t*,
                              const CrossEntropyOptions<double>&, double, double*, double*);

}  // namespace blasformer
