#include "layers/positional_encoding.h"

#include <algorithm>
#include <cmath>

#include "core/describe.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "layers/destination.h"
#include "layers/dropout.h"

namespace blasformer {

namespace {

template <class T>
void check_input(const Tensor<T>& x, const Tensor<std::int64_t>& positions, Index d_model) {
  require((x.rank() == 2 || x.rank() == 3) && x.shape().back() == d_model,
          "x must have the shape (batch, length, ", d_model, ") or (length, ", d_model, "), got ",
          shape_text(x.shape()));
  const Index length = x.extent(x.rank() - 2);
  const bool one_row = positions.rank() == 1 && positions.extent(0) == length;
  const bool per_batch = x.rank() == 3 && positions.shape() == Shape{x.extent(0), length};
  require(one_row || per_batch, "positions must have the shape (length,) = (", length,
          ",) or (batch, length) to fit x ", shape_text(x.shape()), ", got ", shape_text(positions.shape()));
}

// y = dropout(scale * x + table[row_of(r)]) for each row r of x.
template <class T, class RowOf>
Tensor<T> add_rows(const Tensor<T>& x, double scale, const T* table, RowOf row_of, double dropout_p,
                   std::optional<std::uint64_t> seed, Tensor<T>* out) {
  constexpr Index kElementsPerTask = 16384;
  constexpr double kNanosecondsPerElement = 0.3;
  const Index features = x.shape().back(), rows = x.size() / features;
  const Index rows_per_task = std::max<Index>(1, kElementsPerTask / features);
  const T factor = static_cast<T>(scale);
  Tensor<T> y = memory_for(x.shape(), out);
  const double work = kNanosecondsPerElement * static_cast<double>(x.size());
  parallel_for(ceil_div(rows, rows_per_task), work, [&](Index task, int) {
    const Index end = std::min(rows, (task + 1) * rows_per_task);
    for (Index r = task * rows_per_task; r < end; ++r) {
      const T *const source = x.data() + r * features, *const added = table + row_of(r) * features;
      T* const target = y.data() + r * features;
      for (Index i = 0; i < features; ++i) target[i] = factor * source[i] + added[i];
    }
  });
  if (seed && dropout_p > 0) dropout(y.data(), y.size(), dropout_p, *seed, y.data());
  return y;
}

// The gradient of scale * x + encoding.
template <class T>
Tensor<T> undropped(const Tensor<T>& d_y, double dropout_p, std::optional<std::uint64_t> seed) {
  if (!seed || dropout_p == 0) return d_y;
  Tensor<T> d_sum(d_y.shape());
  dropout(d_y.data(), d_y.size(), dropout_p, *seed, d_sum.data());
  return d_sum;
}

template <class T>
Tensor<T> scaled(const Tensor<T>& x, double scale) {
  Tensor<T> y(x.shape());
  std::transform(x.data(), x.data() + x.size(), y.data(),
                 [factor = static_cast<T>(scale)](T value) { return factor * value; });
  return y;
}

}  // namespace

template <class T>
SinusoidalEncoding<T>::SinusoidalEncoding(Index d_model_, SinusoidLayout layout_, double scale_,
                                          double dropout_p_)
    : d_model(d_model_), layout(layout_), scale(scale_), dropout_p(dropout_p_) {
  require(d_model > 0 && d_model % 2 == 0, "d_model must be positive and even, got ", d_model);
  require(std::isfinite(scale), "scale must be a finite number, got ", scale);
  require_probability("dropout", dropout_p);
}

template <class T>
Tensor<T> SinusoidalEncoding<T>::forward(const Tensor<T>& x, const Tensor<std::int64_t>& positions,
                                         std::optional<std::uint64_t> seed, Saved* saved,
                                         Tensor<T>* out) const {
  check_input(x, positions, d_model);
  Tensor<T> table({positions.size(), d_model});
  sinusoidal_positions(positions.data(), positions.size(), d_model, layout, table.data());
  if (saved != nullptr) saved->seed = seed;
  const Index rows = std::max<Index>(1, positions.size());
  return add_rows(x, scale, table.data(), [rows](Index r) { return r % rows; }, dropout_p, seed, out);
}

template <class T>
Tensor<T> SinusoidalEncoding<T>::backward(const Saved& saved, const Tensor<T>& d_y, SinusoidalEncoding&,
                                          Write) const {
  return scaled(undropped(d_y, dropout_p, saved.seed), scale);
}

template <class T>
LearnedEncoding<T>::LearnedEncoding(Index max_len, Index d_model, double scale_, double dropout_p_)
    : embedding((require(max_len > 0, "max_len must be positive, got ", max_len),
                 require(d_model > 0, "d_model must be positive, got ", d_model), max_len),
                d_model),
      scale(scale_),
      dropout_p(dropout_p_) {
  require(std::isfinite(scale), "scale must be a finite number, got ", scale);
  require_probability("dropout", dropout_p);
}

template <class T>
void LearnedEncoding<T>::initialise(Initialiser& random) {
  random.normal(embedding.weight, 0.02);
}

template <class T>
Tensor<T> LearnedEncoding<T>::forward(const Tensor<T>& x, const Tensor<std::int64_t>& positions,
                                      std::optional<std::uint64_t> seed, Saved* saved, Tensor<T>* out) const {
  check_input(x, positions, embedding.embedding_dim());
  const std::int64_t *const first = positions.data(), *const last = first + positions.size();
  const auto* const wrong =
      std::find_if(first, last, [&](std::int64_t p) { return p < 0 || p >= embedding.num_embeddings(); });
  if (wrong != last) {
    fail<std::out_of_range>("positions must lie in [0, ", embedding.num_embeddings(), "), got ", *wrong);
  }
  if (saved != nullptr) *saved = {positions, seed};
  const Index rows = std::max<Index>(1, positions.size());
  return add_rows(
      x, scale, embedding.weight.data(), [=](Index r) { return first[r % rows]; }, dropout_p, seed, out);
}

template <class T>
Tensor<T> LearnedEncoding<T>::backward(const Saved& saved, const Tensor<T>& d_y, LearnedEncoding& gradients,
                                       Write write) const {
  const Tensor<T> d_sum = undropped(d_y, dropout_p, saved.seed);
  const Index rows = d_sum.size() / embedding.embedding_dim(), period = saved.positions.size();
  Tensor<std::int64_t> ids({rows});  // the position of each row
  for (Index r = 0; r < rows; ++r) ids.data()[r] = saved.positions.data()[r % period];
  embedding.backward({ids}, d_sum, gradients.embedding, write);
  return scaled(d_sum, scale);
}

template struct SinusoidalEncoding<float>;
template struct SinusoidalEncoding<double>;
template struct LearnedEncoding<float>;
template struct LearnedEncoding<double>;

}  // namespace blasformer
