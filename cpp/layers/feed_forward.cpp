#include "layers/feed_forward.h"

#include <optional>

#include "core/require.h"
#include "layers/chained_product.h"
#include "layers/destination.h"
#include "layers/dropout.h"

namespace blasformer {

namespace {

// Inference by blocks of rows, without memory for the hidden layer. Nothing where the linear layers are to be
// computed one after the other.
template <class T>
std::optional<Tensor<T>> forward_by_blocks(const FeedForward<T>& layer, const Tensor<T>& x, Tensor<T>* out) {
  const Linear<T>&linear1 = layer.linear1, &linear2 = layer.linear2;
  const Index d_model = linear1.in_features(), dim_feedforward = linear1.out_features();
  const Index rows = x.size() / d_model;
  if (x.rank() == 0 || x.shape().back() != d_model || !chaining_pays(rows) || linear1.adapter ||
      linear2.adapter)
    return std::nullopt;
  const auto first = linear1.packed.of(linear1.weight.data(), d_model, dim_feedforward, rows, dim_feedforward,
                                       Pass::inference);
  const auto second =
      linear2.packed.of(linear2.weight.data(), dim_feedforward, d_model, rows, d_model, Pass::inference);
  if (first == nullptr || second == nullptr) return std::nullopt;
  Tensor<T> y = memory_for(x.shape(), out);
  const bool done = chained_product<T>(
      rows, {x.data(), d_model, 1}, {{*first, dim_feedforward, linear1.bias.data()}},
      [&](T* hidden, Index, Index size) { activate(layer.activation, hidden, size, hidden); },
      {*second, d_model, linear2.bias.data()}, y.data(), d_model);
  return done ? std::optional(y) : std::nullopt;
}

}  // namespace

template <class T>
FeedForward<T>::FeedForward(Index d_model, Index dim_feedforward, Activation activation_, double dropout_p_,
                            bool with_bias)
    : linear1((require(d_model > 0, "d_model must be positive, got ", d_model), d_model),
              (require(dim_feedforward > 0, "dim_feedforward must be positive, got ", dim_feedforward),
               dim_feedforward),
              with_bias),
      linear2(dim_feedforward, d_model, with_bias),
      activation(activation_),
      dropout_p(dropout_p_) {
  require_probability("dropout", dropout_p);
}

template <class T>
void FeedForward<T>::initialise(Initialiser& random) {
  linear1.initialise(random);
  linear2.initialise(random);
}

template <class T>
Tensor<T> FeedForward<T>::forward(const Tensor<T>& x, std::optional<std::uint64_t> seed, Saved* saved,
                                  Tensor<T>* out) const {
  const bool dropped = seed && dropout_p > 0;
  if (saved == nullptr && !dropped) {
    if (const auto y = forward_by_blocks(*this, x, out)) return *y;
  }
  Tensor<T> hidden = linear1.forward(x, saved ? &saved->linear1 : nullptr, adapter_seed(seed, 0));
  if (saved) {
    saved->preactivation = hidden;
    saved->seed = seed;
    hidden = Tensor<T>(hidden.shape());
    activate(activation, saved->preactivation.data(), hidden.size(), hidden.data());
  } else {
    activate(activation, hidden.data(), hidden.size(), hidden.data());
  }
  if (dropped) dropout(hidden.data(), hidden.size(), dropout_p, *seed, hidden.data());
  return linear2.forward(hidden, nullptr, adapter_seed(seed, 1), saved ? Pass::training : Pass::inference,
                         out);
}

template <class T>
Tensor<T> FeedForward<T>::backward(const Saved& saved, const Tensor<T>& d_y, FeedForward& gradients,
                                   Write write) const {
  const Shape& shape = saved.preactivation.shape();
  const Index size = saved.preactivation.size();
  const bool dropped = saved.seed && dropout_p > 0;
  Tensor<T> d_hidden(shape), hidden(shape);
  linear2.input_gradient(d_y, adapter_seed(saved.seed, 1), d_hidden);
  if (dropped) dropout(d_hidden.data(), size, dropout_p, *saved.seed, d_hidden.data());
  activate_backward(activation, saved.preactivation.data(), d_hidden.data(), size, d_hidden.data(),
                    hidden.data());
  if (dropped) dropout(hidden.data(), size, dropout_p, *saved.seed, hidden.data());
  linear2.parameter_gradients(hidden, adapter_seed(saved.seed, 1), d_y, gradients.linear2, write);
  hidden = {};
  return linear1.backward(saved.linear1, d_hidden, gradients.linear1, write);
}

template struct FeedForward<float>;
template struct FeedForward<double>;

}  // namespace blasformer
