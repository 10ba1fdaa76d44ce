#include "layers/encoder.h"

#include "core/describe.h"
#include "core/require.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

template <class Layer>
TransformerEncoder<Layer>::TransformerEncoder(const Layer& layer, Index num_layers,
                                              const std::optional<Norm>& norm_) {
  require(num_layers > 0, "num_layers must be positive, got ", num_layers);
  for (Index i = 0; i < num_layers; ++i) layers.push_back(copy_of(layer));
  if (norm_) {
    require(norm_->normalized_shape == Shape{layer.d_model()}, "norm must normalise over the ",
            layer.d_model(), " features of the encoder layer, got normalized_shape ",
            shape_text(norm_->normalized_shape));
    norm = copy_of(*norm_);
  }
}

template <class Layer>
void TransformerEncoder<Layer>::initialise(Initialiser& random) {
  for (Layer& layer : layers) layer.initialise(random);
  if (norm) norm->initialise(random);
}

template <class Layer>
auto TransformerEncoder<Layer>::forward(const Tensor<T>& x, const AttentionArguments& arguments, Saved* saved,
                                        std::map<Index, AskedWeights<T>>* asked, Tensor<T>* out) const
    -> Tensor<T> {
  if (saved != nullptr) saved->layers.resize(layers.size());
  Tensor<T> y = x;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    AttentionArguments own = arguments;
    own.seed = dropout_seed(arguments.seed, i * Layer::kDropoutPlaces);
    AskedWeights<T>* asked_here = nullptr;
    if (asked != nullptr && asked->contains(static_cast<Index>(i)))
      asked_here = &asked->at(static_cast<Index>(i));
    y = layers[i].forward(y, own, saved != nullptr ? &saved->layers[i] : nullptr, asked_here,
                          !norm && i + 1 == layers.size() ? out : nullptr);
  }
  return norm ? norm->forward(y, saved != nullptr ? &saved->norm : nullptr, out) : y;
}

template <class Layer>
auto TransformerEncoder<Layer>::backward(const Saved& saved, const Tensor<T>& d_y,
                                         TransformerEncoder& gradients, Write write) const -> Tensor<T> {
  Tensor<T> d_x = norm ? norm->backward(saved.norm, d_y, *gradients.norm, write) : d_y;
  for (std::size_t i = layers.size(); i-- > 0;)
    d_x = layers[i].backward(saved.layers[i], d_x, gradients.layers[i], write);
  return d_x;
}

#define BLASFORMER_ENCODERS(T, Norm, Feed)                                       \
  template struct TransformerEncoder<PostNormEncoderLayer<T, Norm<T>, Feed<T>>>; \
  template struct TransformerEncoder<PreNormEncoderLayer<T, Norm<T>, Feed<T>>>;
BLASFORMER_EACH_BLOCK(BLASFORMER_ENCODERS)

}  // namespace blasformer
