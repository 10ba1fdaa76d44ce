#include "layers/feed_forward.h"

#include "core/require.h"
#include "layers/dropout.h"

namespace blasformer {

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
  Tensor<T> hidden = linear1.forward(x, saved ? &saved->linear1 : nullptr, adapter_seed(seed, 0));
  if (saved) {
    saved->preactivation = hidden;
    saved->seed = seed;
    hidden = Tensor<T>(hidden.shape());
    activate(activation, saved->preactivation.data(), hidden.size(), hidden.data());
  } else {
    activate(activation, hidden.data(), hidden.size(), hidden.data());
  }
  if (seed && dropout_p > 0) dropout(hidden.data(), hidden.size(), dropout_p, *seed, hidden.data());
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
