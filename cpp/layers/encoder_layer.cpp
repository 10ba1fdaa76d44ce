#include "layers/encoder_layer.h"

#include <utility>

#include "core/describe.h"
#include "core/require.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

namespace {

template <class T>
void check_input(const Tensor<T>& x, Index d_model) {
  require((x.rank() == 2 || x.rank() == 3) && x.shape().back() == d_model,
          "x must have the shape (batch, length, ", d_model, ") or (length, ", d_model, "), got ",
          shape_text(x.shape()));
}

// For a layer that computes again: what else it would save is not wanted.
template <class Saved, class T>
Saved* keep_input(const Tensor<T>& x, const std::vector<Index>& starts, const AttentionArguments& arguments,
                  Saved* saved) {
  saved->input = x;
  saved->starts = starts;
  saved->arguments = arguments;
  return nullptr;
}

// What a forward pass that kept its input alone would have saved.
template <class Layer>
typename Layer::Saved saved_again(Layer layer, const typename Layer::Saved& saved) {
  typename Layer::Saved full;
  layer.recompute = false;
  if (saved.starts.empty()) {
    layer.forward(saved.input, saved.arguments, &full);
  } else {
    layer.forward_packed(saved.input, saved.starts, saved.arguments, &full);
  }
  return full;
}

}  // namespace

template <class T, class Norm, class Feed>
EncoderSublayers<T, Norm, Feed>::EncoderSublayers(const TransformerLayerSizes& sizes)
    : self_attn(attention_of<T>(checked(sizes), sizes.rotary)),
      feed_forward(sizes.d_model, sizes.dim_feedforward, sizes.activation, sizes.dropout_p, sizes.with_bias),
      norm1(norm_of<Norm>(sizes)),
      norm2(norm_of<Norm>(sizes)),
      dropout_p(sizes.dropout_p),
      recompute(sizes.recompute) {}

template <class T, class Norm, class Feed>
void EncoderSublayers<T, Norm, Feed>::initialise(Initialiser& random) {
  self_attn.initialise(random);
  feed_forward.initialise(random);
  norm1.initialise(random);
  norm2.initialise(random);
}

template <class T, class Norm, class Feed>
Tensor<T> PostNormEncoderLayer<T, Norm, Feed>::forward(const Tensor<T>& x,
                                                       const AttentionArguments& arguments, Saved* saved,
                                                       AskedWeights<T>* asked, Tensor<T>* out) const {
  check_input(x, this->d_model());
  if (saved && this->recompute) saved = keep_input(x, {}, arguments, saved);
  return join(x, this->self_attn.forward(x, arguments, saved ? &saved->self_attn : nullptr, asked),
              arguments.seed, saved, out);
}

template <class T, class Norm, class Feed>
Tensor<T> PostNormEncoderLayer<T, Norm, Feed>::forward_packed(const Tensor<T>& x,
                                                              const std::vector<Index>& starts,
                                                              const AttentionArguments& arguments,
                                                              Saved* saved) const {
  if (saved && this->recompute) saved = keep_input(x, starts, arguments, saved);
  return join(x, this->self_attn.forward_packed(x, starts, arguments, saved ? &saved->self_attn : nullptr),
              arguments.seed, saved, nullptr);
}

template <class T, class Norm, class Feed>
Tensor<T> PostNormEncoderLayer<T, Norm, Feed>::join(const Tensor<T>& x, Tensor<T> attended,
                                                    std::optional<std::uint64_t> seed, Saved* saved,
                                                    Tensor<T>* out) const {
  add_residual(x, this->dropout_p, dropout_seed(seed, 1), attended);
  const Tensor<T> y = this->norm1.forward(attended, saved ? &saved->norm1 : nullptr);
  Tensor<T> fed =
      this->feed_forward.forward(y, dropout_seed(seed, 2), saved ? &saved->feed_forward : nullptr);
  add_residual(y, this->dropout_p, dropout_seed(seed, 3), fed);
  if (saved) saved->seed = seed;
  return this->norm2.forward(fed, saved ? &saved->norm2 : nullptr, out);
}

template <class T, class Norm, class Feed>
Tensor<T> PostNormEncoderLayer<T, Norm, Feed>::backward(const Saved& saved, const Tensor<T>& d_y,
                                                        PostNormEncoderLayer& gradients, Write write) const {
  if (!saved.input.empty()) return backward(saved_again(*this, saved), d_y, gradients, write);
  const double p = this->dropout_p;
  const Tensor<T> d_fed = this->norm2.backward(saved.norm2, d_y, gradients.norm2, write);
  Tensor<T> d_middle = this->feed_forward.backward(saved.feed_forward,
                                                   residual_gradient(d_fed, p, dropout_seed(saved.seed, 3)),
                                                   gradients.feed_forward, write);
  add_to(d_fed, d_middle);
  const Tensor<T> d_attended = this->norm1.backward(saved.norm1, d_middle, gradients.norm1, write);
  Tensor<T> d_x =
      this->self_attn
          .backward(saved.self_attn, residual_gradient(d_attended, p, dropout_seed(saved.seed, 1)),
                    gradients.self_attn, write)
          .query;
  add_to(d_attended, d_x);
  return d_x;
}

template <class T, class Norm, class Feed>
Tensor<T> PreNormEncoderLayer<T, Norm, Feed>::forward(const Tensor<T>& x, const AttentionArguments& arguments,
                                                      Saved* saved, AskedWeights<T>* asked,
                                                      Tensor<T>* out) const {
  check_input(x, this->d_model());
  if (saved && this->recompute) saved = keep_input(x, {}, arguments, saved);
  const Tensor<T> normed = this->norm1.forward(x, saved ? &saved->norm1 : nullptr);
  return join(x, this->self_attn.forward(normed, arguments, saved ? &saved->self_attn : nullptr, asked),
              arguments.seed, saved, out);
}

template <class T, class Norm, class Feed>
Tensor<T> PreNormEncoderLayer<T, Norm, Feed>::forward_packed(const Tensor<T>& x,
                                                             const std::vector<Index>& starts,
                                                             const AttentionArguments& arguments,
                                                             Saved* saved) const {
  if (saved && this->recompute) saved = keep_input(x, starts, arguments, saved);
  const Tensor<T> normed = this->norm1.forward(x, saved ? &saved->norm1 : nullptr);
  return join(x,
              this->self_attn.forward_packed(normed, starts, arguments, saved ? &saved->self_attn : nullptr),
              arguments.seed, saved, nullptr);
}

template <class T, class Norm, class Feed>
Tensor<T> PreNormEncoderLayer<T, Norm, Feed>::join(const Tensor<T>& x, Tensor<T> attended,
                                                   std::optional<std::uint64_t> seed, Saved* saved,
                                                   Tensor<T>* out) const {
  add_residual(x, this->dropout_p, dropout_seed(seed, 1), attended);
  const Tensor<T> normed = this->norm2.forward(attended, saved ? &saved->norm2 : nullptr);
  Tensor<T> fed =
      this->feed_forward.forward(normed, dropout_seed(seed, 2), saved ? &saved->feed_forward : nullptr, out);
  add_residual(attended, this->dropout_p, dropout_seed(seed, 3), fed);
  if (saved) saved->seed = seed;
  return fed;
}

template <class T, class Norm, class Feed>
Tensor<T> PreNormEncoderLayer<T, Norm, Feed>::backward(const Saved& saved, const Tensor<T>& d_y,
                                                       PreNormEncoderLayer& gradients, Write write) const {
  if (!saved.input.empty()) return backward(saved_again(*this, saved), d_y, gradients, write);
  const double p = this->dropout_p;
  const Tensor<T> d_normed =
      this->feed_forward.backward(saved.feed_forward, residual_gradient(d_y, p, dropout_seed(saved.seed, 3)),
                                  gradients.feed_forward, write);
  const Tensor<T> d_middle = this->norm2.backward(saved.norm2, d_normed, gradients.norm2, write, &d_y);
  const Tensor<T> d_attended =
      this->self_attn
          .backward(saved.self_attn, residual_gradient(d_middle, p, dropout_seed(saved.seed, 1)),
                    gradients.self_attn, write)
          .query;
  return this->norm1.backward(saved.norm1, d_attended, gradients.norm1, write, &d_middle);
}

#define BLASFORMER_ENCODER_LAYERS(T, Norm, Feed)             \
  template struct EncoderSublayers<T, Norm<T>, Feed<T>>;     \
  template struct PostNormEncoderLayer<T, Norm<T>, Feed<T>>; \
  template struct PreNormEncoderLayer<T, Norm<T>, Feed<T>>;
BLASFORMER_EACH_BLOCK(BLASFORMER_ENCODER_LAYERS)

}  // namespace blasformer
