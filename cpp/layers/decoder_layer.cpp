#include "layers/decoder_layer.h"

#include "core/describe.h"
#include "core/require.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

namespace {

template <class T>
void check_inputs(const Tensor<T>& target, const Tensor<T>& memory, Index d_model) {
  require((target.rank() == 2 || target.rank() == 3) && target.shape().back() == d_model,
          "target must have the shape (batch, length, ", d_model, ") or (length, ", d_model, "), got ",
          shape_text(target.shape()));
  const bool fits = memory.rank() == target.rank() && memory.shape().back() == d_model &&
                    (memory.rank() == 2 || memory.extent(0) == target.extent(0));
  if (fits) return;
  if (target.rank() == 3) {
    fail("memory must have the shape (", target.extent(0), ", memory_length, ", d_model, ") to fit target ",
         shape_text(target.shape()), ", got ", shape_text(memory.shape()));
  }
  fail("memory must have the shape (memory_length, ", d_model, ") to fit target ", shape_text(target.shape()),
       ", got ", shape_text(memory.shape()));
}

// What a forward pass that kept its inputs alone would have saved.
template <class Layer>
typename Layer::Saved saved_again(Layer layer, const typename Layer::Saved& saved) {
  typename Layer::Saved full;
  layer.recompute = false;
  layer.forward(saved.target, saved.memory, saved.arguments, &full);
  return full;
}

}  // namespace

template <class T, class Norm, class Feed>
DecoderSublayers<T, Norm, Feed>::DecoderSublayers(const TransformerLayerSizes& sizes)
    : self_attn(attention_of<T>(checked(sizes), sizes.rotary)),
      multihead_attn(attention_of<T>(sizes, std::nullopt)),
      feed_forward(sizes.d_model, sizes.dim_feedforward, sizes.activation, sizes.dropout_p, sizes.with_bias),
      norm1(norm_of<Norm>(sizes)),
      norm2(norm_of<Norm>(sizes)),
      norm3(norm_of<Norm>(sizes)),
      dropout_p(sizes.dropout_p),
      recompute(sizes.recompute) {}

template <class T, class Norm, class Feed>
void DecoderSublayers<T, Norm, Feed>::initialise(Initialiser& random) {
  self_attn.initialise(random);
  multihead_attn.initialise(random);
  feed_forward.initialise(random);
  norm1.initialise(random);
  norm2.initialise(random);
  norm3.initialise(random);
}

template <class T, class Norm, class Feed>
Tensor<T> DecoderSublayers<T, Norm, Feed>::look_up(const Tensor<T>& x, const Tensor<T>& memory,
                                                   const DecoderArguments& arguments, Saved* saved,
                                                   AskedDecoderWeights<T>* asked) const {
  AttentionArguments own = arguments.multihead_attn;
  own.seed = dropout_seed(arguments.self_attn.seed, 2);
  return renaming_errors({{"mask", "memory_mask"},
                          {"key_lengths", "memory_key_lengths"},
                          {"key_segments", "memory_key_segments"}},
                         [&] {
                           return multihead_attn.forward(x, &memory, nullptr, own,
                                                         saved != nullptr ? &saved->multihead_attn : nullptr,
                                                         asked != nullptr ? &asked->multihead_attn : nullptr);
                         });
}

template <class T, class Norm, class Feed>
Tensor<T> PostNormDecoderLayer<T, Norm, Feed>::forward(const Tensor<T>& target, const Tensor<T>& memory,
                                                       const DecoderArguments& arguments, Saved* saved,
                                                       AskedDecoderWeights<T>* asked, Tensor<T>* out) const {
  check_inputs(target, memory, this->d_model());
  if (saved != nullptr && this->recompute) {
    saved->target = target;
    saved->memory = memory;
    saved->arguments = arguments;
    saved = nullptr;
  }
  const std::optional<std::uint64_t> seed = arguments.self_attn.seed;
  Tensor<T> attended =
      this->self_attn.forward(target, arguments.self_attn, saved != nullptr ? &saved->self_attn : nullptr,
                              asked != nullptr ? &asked->self_attn : nullptr);
  add_residual(target, this->dropout_p, dropout_seed(seed, 1), attended);
  const Tensor<T> x = this->norm1.forward(attended, saved != nullptr ? &saved->norm1 : nullptr);

  Tensor<T> looked_up = this->look_up(x, memory, arguments, saved, asked);
  add_residual(x, this->dropout_p, dropout_seed(seed, 3), looked_up);
  const Tensor<T> y = this->norm2.forward(looked_up, saved != nullptr ? &saved->norm2 : nullptr);

  Tensor<T> fed =
      this->feed_forward.forward(y, dropout_seed(seed, 4), saved != nullptr ? &saved->feed_forward : nullptr);
  add_residual(y, this->dropout_p, dropout_seed(seed, 5), fed);
  if (saved != nullptr) saved->seed = seed;
  return this->norm3.forward(fed, saved != nullptr ? &saved->norm3 : nullptr, out);
}

template <class T, class Norm, class Feed>
DecoderInputGradients<T> PostNormDecoderLayer<T, Norm, Feed>::backward(const Saved& saved,
                                                                       const Tensor<T>& d_y,
                                                                       PostNormDecoderLayer& gradients,
                                                                       Write write) const {
  if (!saved.target.empty()) return backward(saved_again(*this, saved), d_y, gradients, write);
  const auto branch = [&](const Tensor<T>& d_sum, std::uint64_t place) {
    return residual_gradient(d_sum, this->dropout_p, dropout_seed(saved.seed, place));
  };
  const Tensor<T> d_fed = this->norm3.backward(saved.norm3, d_y, gradients.norm3, write);
  Tensor<T> d_norm2 =
      this->feed_forward.backward(saved.feed_forward, branch(d_fed, 5), gradients.feed_forward, write);
  add_to(d_fed, d_norm2);

  const Tensor<T> d_looked_up = this->norm2.backward(saved.norm2, d_norm2, gradients.norm2, write);
  auto d_norm1 = this->multihead_attn.backward(saved.multihead_attn, branch(d_looked_up, 3),
                                               gradients.multihead_attn, write);
  add_to(d_looked_up, d_norm1.query);

  const Tensor<T> d_attended = this->norm1.backward(saved.norm1, d_norm1.query, gradients.norm1, write);
  auto d_target =
      this->self_attn.backward(saved.self_attn, branch(d_attended, 1), gradients.self_attn, write);
  add_to(d_attended, d_target.query);
  return {d_target.query, d_norm1.key};
}

template <class T, class Norm, class Feed>
Tensor<T> PreNormDecoderLayer<T, Norm, Feed>::forward(const Tensor<T>& target, const Tensor<T>& memory,
                                                      const DecoderArguments& arguments, Saved* saved,
                                                      AskedDecoderWeights<T>* asked, Tensor<T>* out) const {
  check_inputs(target, memory, this->d_model());
  if (saved != nullptr && this->recompute) {
    saved->target = target;
    saved->memory = memory;
    saved->arguments = arguments;
    saved = nullptr;
  }
  const std::optional<std::uint64_t> seed = arguments.self_attn.seed;
  Tensor<T> x = this->self_attn.forward(
      this->norm1.forward(target, saved != nullptr ? &saved->norm1 : nullptr), arguments.self_attn,
      saved != nullptr ? &saved->self_attn : nullptr, asked != nullptr ? &asked->self_attn : nullptr);
  add_residual(target, this->dropout_p, dropout_seed(seed, 1), x);

  Tensor<T> y = this->look_up(this->norm2.forward(x, saved != nullptr ? &saved->norm2 : nullptr), memory,
                              arguments, saved, asked);
  add_residual(x, this->dropout_p, dropout_seed(seed, 3), y);

  Tensor<T> z = this->feed_forward.forward(this->norm3.forward(y, saved != nullptr ? &saved->norm3 : nullptr),
                                           dropout_seed(seed, 4),
                                           saved != nullptr ? &saved->feed_forward : nullptr, out);
  add_residual(y, this->dropout_p, dropout_seed(seed, 5), z);
  if (saved != nullptr) saved->seed = seed;
  return z;
}

template <class T, class Norm, class Feed>
DecoderInputGradients<T> PreNormDecoderLayer<T, Norm, Feed>::backward(const Saved& saved,
                                                                      const Tensor<T>& d_y,
                                                                      PreNormDecoderLayer& gradients,
                                                                      Write write) const {
  if (!saved.target.empty()) return backward(saved_again(*this, saved), d_y, gradients, write);
  const auto branch = [&](const Tensor<T>& d_sum, std::uint64_t place) {
    return residual_gradient(d_sum, this->dropout_p, dropout_seed(saved.seed, place));
  };
  const Tensor<T> d_norm3 =
      this->feed_forward.backward(saved.feed_forward, branch(d_y, 5), gradients.feed_forward, write);
  const Tensor<T> d_looked_up = this->norm3.backward(saved.norm3, d_norm3, gradients.norm3, write, &d_y);

  const auto d_norm2 = this->multihead_attn.backward(saved.multihead_attn, branch(d_looked_up, 3),
                                                     gradients.multihead_attn, write);
  const Tensor<T> d_attended =
      this->norm2.backward(saved.norm2, d_norm2.query, gradients.norm2, write, &d_looked_up);

  const auto d_norm1 =
      this->self_attn.backward(saved.self_attn, branch(d_attended, 1), gradients.self_attn, write);
  return {this->norm1.backward(saved.norm1, d_norm1.query, gradients.norm1, write, &d_attended), d_norm2.key};
}

#define BLASFORMER_DECODER_LAYERS(T, Norm, Feed)             \
  template struct DecoderSublayers<T, Norm<T>, Feed<T>>;     \
  template struct PostNormDecoderLayer<T, Norm<T>, Feed<T>>; \
  template struct PreNormDecoderLayer<T, Norm<T>, Feed<T>>;
BLASFORMER_EACH_BLOCK(BLASFORMER_DECODER_LAYERS)

}  // namespace blasformer
