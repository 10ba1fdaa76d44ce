#include "layers/encoder_layer.h"

#include <utility>

#include "core/describe.h"
#include "core/require.h"
#include "layers/residual.h"

namespace blasformer {

namespace {

// In the words of the encoder layer, before its parts say the same in theirs.
const EncoderLayerSizes& checked(const EncoderLayerSizes& sizes) {
  require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model);
  require(sizes.num_heads > 0, "nhead must be positive, got ", sizes.num_heads);
  require(sizes.d_model % sizes.num_heads == 0, "d_model must be a multiple of nhead = ", sizes.num_heads,
          ", got ", sizes.d_model);
  require(sizes.dim_feedforward > 0, "dim_feedforward must be positive, got ", sizes.dim_feedforward);
  require(sizes.layer_norm_eps >= 0, "layer_norm_eps must be at least 0, got ", sizes.layer_norm_eps);
  return sizes;
}

template <class T>
void check_input(const Tensor<T>& x, Index d_model) {
  require((x.rank() == 2 || x.rank() == 3) && x.shape().back() == d_model,
          "x must have the shape (batch, length, ", d_model, ") or (length, ", d_model, "), got ",
          shape_text(x.shape()));
}

}  // namespace

template <class T>
EncoderSublayers<T>::EncoderSublayers(const EncoderLayerSizes& sizes)
    : self_attn(checked(sizes).d_model, sizes.num_heads, sizes.num_kv_heads, sizes.d_model, sizes.d_model,
                sizes.dropout_p, sizes.with_bias),
      feed_forward(sizes.d_model, sizes.dim_feedforward, sizes.activation, sizes.dropout_p, sizes.with_bias),
      norm1({sizes.d_model}, sizes.layer_norm_eps, true, sizes.with_bias),
      norm2({sizes.d_model}, sizes.layer_norm_eps, true, sizes.with_bias),
      dropout_p(sizes.dropout_p) {}

template <class T>
void EncoderSublayers<T>::initialise(Initialiser& random) {
  self_attn.initialise(random);
  feed_forward.initialise(random);
  norm1.initialise(random);
  norm2.initialise(random);
}

template <class T>
Tensor<T> PostNormEncoderLayer<T>::forward(const Tensor<T>& x, const AttentionArguments& arguments,
                                           Saved* saved, AskedWeights<T>* asked) const {
  check_input(x, this->d_model());
  return join(x, this->self_attn.forward(x, arguments, saved ? &saved->self_attn : nullptr, asked),
              arguments.seed, saved);
}

template <class T>
Tensor<T> PostNormEncoderLayer<T>::forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                                                  const AttentionArguments& arguments) const {
  return join(x, this->self_attn.forward_packed(x, starts, arguments), std::nullopt, nullptr);
}

template <class T>
Tensor<T> PostNormEncoderLayer<T>::join(const Tensor<T>& x, Tensor<T> attended,
                                        std::optional<std::uint64_t> seed, Saved* saved) const {
  add_residual(x, this->dropout_p, dropout_seed(seed, 1), attended);
  const Tensor<T> y = this->norm1.forward(attended, saved ? &saved->norm1 : nullptr);
  Tensor<T> fed =
      this->feed_forward.forward(y, dropout_seed(seed, 2), saved ? &saved->feed_forward : nullptr);
  add_residual(y, this->dropout_p, dropout_seed(seed, 3), fed);
  if (saved) saved->seed = seed;
  return this->norm2.forward(fed, saved ? &saved->norm2 : nullptr);
}

template <class T>
Tensor<T> PreNormEncoderLayer<T>::forward(const Tensor<T>& x, const AttentionArguments& arguments,
                                          Saved* saved, AskedWeights<T>* asked) const {
  check_input(x, this->d_model());
  const Tensor<T> normed = this->norm1.forward(x, saved ? &saved->norm1 : nullptr);
  return join(x, this->self_attn.forward(normed, arguments, saved ? &saved->self_attn : nullptr, asked),
              arguments.seed, saved);
}

template <class T>
Tensor<T> PreNormEncoderLayer<T>::forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                                                 const AttentionArguments& arguments) const {
  return join(x, this->self_attn.forward_packed(this->norm1.forward(x), starts, arguments), std::nullopt,
              nullptr);
}

template <class T>
Tensor<T> PreNormEncoderLayer<T>::join(const Tensor<T>& x, Tensor<T> attended,
                                       std::optional<std::uint64_t> seed, Saved* saved) const {
  add_residual(x, this->dropout_p, dropout_seed(seed, 1), attended);
  const Tensor<T> normed = this->norm2.forward(attended, saved ? &saved->norm2 : nullptr);
  Tensor<T> fed =
      this->feed_forward.forward(normed, dropout_seed(seed, 2), saved ? &saved->feed_forward : nullptr);
  add_residual(attended, this->dropout_p, dropout_seed(seed, 3), fed);
  if (saved) saved->seed = seed;
  return fed;
}

template struct EncoderSublayers<float>;
template struct EncoderSublayers<double>;
template struct PostNormEncoderLayer<float>;
template struct PostNormEncoderLayer<double>;
template struct PreNormEncoderLayer<float>;
template struct PreNormEncoderLayer<double>;

}  // namespace blasformer
