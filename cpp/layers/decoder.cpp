#include "layers/decoder.h"

#include "core/describe.h"
#include "core/require.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

template <class Layer>
TransformerDecoder<Layer>::TransformerDecoder(const Layer& layer, Index num_layers,
                                              const std::optional<Norm>& norm_) {
  require(num_layers > 0, "num_layers must be positive, got ", num_layers);
  for (Index i = 0; i < num_layers; ++i) layers.push_back(copy_of(layer));
  if (norm_) {
    require(norm_->normalized_shape == Shape{layer.d_model()}, "norm must normalise over the ",
            layer.d_model(), " features of the decoder layer, got normalized_shape ",
            shape_text(norm_->normalized_shape));
    norm = copy_of(*norm_);
  }
}

template <class Layer>
void TransformerDecoder<Layer>::initialise(Initialiser& random) {
  for (Layer& layer : layers) layer.initialise(random);
  if (norm) norm->initialise(random);
}

template <class Layer>
auto TransformerDecoder<Layer>::forward(const Tensor<T>& target, const Tensor<T>& memory,
                                        const DecoderArguments& arguments, Saved* saved,
                                        std::map<Index, AskedDecoderWeights<T>>* asked, Tensor<T>* out) const
    -> Tensor<T> {
  if (saved != nullptr) saved->layers.resize(layers.size());
  Tensor<T> y = target;
  DecoderArguments own = arguments;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    own.self_attn.seed = dropout_seed(arguments.self_attn.seed, i * Layer::kDropoutPlaces);
    AskedDecoderWeights<T>* asked_here = nullptr;
    if (asked != nullptr && asked->contains(static_cast<Index>(i)))
      asked_here = &asked->at(static_cast<Index>(i));
    y = layers[i].forward(y, memory, own, saved != nullptr ? &saved->layers[i] : nullptr, asked_here,
                          !norm && i + 1 == layers.size() ? out : nullptr);
  }
  return norm ? norm->forward(y, saved != nullptr ? &saved->norm : nullptr, out) : y;
}

template <class Layer>
auto TransformerDecoder<Layer>::backward(const Saved& saved, const Tensor<T>& d_y,
                                         TransformerDecoder& gradients, Write write) const
    -> DecoderInputGradients<T> {
  DecoderInputGradients<T> d_inputs;
  Tensor<T> d = norm ? norm->backward(saved.norm, d_y, *gradients.norm, write) : d_y;
  for (std::size_t i = layers.size(); i-- > 0;) {
    DecoderInputGradients<T> of_layer = layers[i].backward(saved.layers[i], d, gradients.layers[i], write);
    d = of_layer.target;
    if (d_inputs.memory.empty()) {
      d_inputs.memory = of_layer.memory;
    } else {
      add_to(of_layer.memory, d_inputs.memory);
    }
  }
  d_inputs.target = d;
  return d_inputs;
}

#define BLASFORMER_DECODERS(T, Norm, Feed)                                       \
  template struct TransformerDecoder<PostNormDecoderLayer<T, Norm<T>, Feed<T>>>; \
  template struct TransformerDecoder<PreNormDecoderLayer<T, Norm<T>, Feed<T>>>;
BLASFORMER_EACH_BLOCK(BLASFORMER_DECODERS)

}  // namespace blasformer
