#include "layers/transformer.h"

#include <cmath>

#include "core/describe.h"
#include "core/require.h"
#include "layers/gated_feed_forward.h"
#include "layers/residual.h"
#include "layers/rms_norm.h"

namespace blasformer {

namespace {

template <class T>
void check_source(const Tensor<T>& source, Index d_model) {
  require((source.rank() == 2 || source.rank() == 3) && source.shape().back() == d_model,
          "source must have the shape (batch, length, ", d_model, ") or (length, ", d_model, "), got ",
          shape_text(source.shape()));
}

}  // namespace

template <class EncoderLayer, class DecoderLayer>
Transformer<EncoderLayer, DecoderLayer>::Transformer(const TransformerLayerSizes& sizes,
                                                     Index num_encoder_layers, Index num_decoder_layers)
    : encoder(
          EncoderLayer(sizes),
          (require(num_encoder_layers > 0, "num_encoder_layers must be positive, got ", num_encoder_layers),
           num_encoder_layers),
          norm_of<typename Encoder::Norm>(sizes)),
      decoder(
          DecoderLayer(sizes),
          (require(num_decoder_layers > 0, "num_decoder_layers must be positive, got ", num_decoder_layers),
           num_decoder_layers),
          norm_of<typename Decoder::Norm>(sizes)) {}

template <class EncoderLayer, class DecoderLayer>
void Transformer<EncoderLayer, DecoderLayer>::initialise(Initialiser& random) {
  encoder.initialise(random);
  decoder.initialise(random);
  each_parameter(*this, [&random](const std::string&, Tensor<T>& parameter) {
    if (parameter.rank() < 2) return;
    const auto fans = static_cast<double>(parameter.extent(0) + parameter.extent(1));
    random.uniform(parameter, std::sqrt(6 / fans));
  });
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::run_encoder(const Tensor<T>& source,
                                                          const AttentionArguments& arguments, Saved* saved,
                                                          Asked* asked, Tensor<T>* out) const -> Tensor<T> {
  return renaming_errors({{"mask", "source_mask"}, {"key_lengths", "source_lengths"}}, [&] {
    return encoder.forward(source, arguments, saved != nullptr ? &saved->encoder : nullptr,
                           asked != nullptr ? &asked->encoder : nullptr, out);
  });
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::run_decoder(const Tensor<T>& target, const Tensor<T>& memory,
                                                          const DecoderArguments& arguments, Saved* saved,
                                                          Asked* asked, Tensor<T>* out) const -> Tensor<T> {
  return renaming_errors(
      {{"mask", "target_mask"}, {"key_lengths", "target_lengths"}, {"memory_key_lengths", "source_lengths"}},
      [&] {
        return decoder.forward(target, memory, arguments, saved != nullptr ? &saved->decoder : nullptr,
                               asked != nullptr ? &asked->decoder : nullptr, out);
      });
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::forward(const Tensor<T>& source, const Tensor<T>& target,
                                                      const TransformerArguments& arguments, Saved* saved,
                                                      Asked* asked, Tensor<T>* out) const -> Tensor<T> {
  check_source(source, d_model());
  const bool fits = target.rank() == source.rank() && target.shape().back() == d_model() &&
                    (target.rank() == 2 || target.extent(0) == source.extent(0));
  require(fits, "target must have the axes of source ", shape_text(source.shape()),
          ", but for a length of its own, and ", d_model(), " features, got ", shape_text(target.shape()));
  const Tensor<T> memory = run_encoder(source, arguments.encoder, saved, asked, nullptr);
  DecoderArguments own = arguments.decoder;
  own.self_attn.seed =
      dropout_seed(arguments.encoder.seed, encoder.layers.size() * EncoderLayer::kDropoutPlaces);
  return run_decoder(target, memory, own, saved, asked, out);
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::encode(const Tensor<T>& source,
                                                     const AttentionArguments& arguments,
                                                     Tensor<T>* out) const -> Tensor<T> {
  check_source(source, d_model());
  return run_encoder(source, arguments, nullptr, nullptr, out);
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::decode(const Tensor<T>& target, const Tensor<T>& memory,
                                                     const DecoderArguments& arguments, Tensor<T>* out) const
    -> Tensor<T> {
  return run_decoder(target, memory, arguments, nullptr, nullptr, out);
}

template <class EncoderLayer, class DecoderLayer>
auto Transformer<EncoderLayer, DecoderLayer>::backward(const Saved& saved, const Tensor<T>& d_y,
                                                       Transformer& gradients, Write write) const
    -> InputGradients {
  const DecoderInputGradients<T> d_decoder = decoder.backward(saved.decoder, d_y, gradients.decoder, write);
  return {encoder.backward(saved.encoder, d_decoder.memory, gradients.encoder, write), d_decoder.target};
}

#define BLASFORMER_TRANSFORMERS(T, Norm, Feed)                            \
  template struct Transformer<PostNormEncoderLayer<T, Norm<T>, Feed<T>>,  \
                              PostNormDecoderLayer<T, Norm<T>, Feed<T>>>; \
  template struct Transformer<PreNormEncoderLayer<T, Norm<T>, Feed<T>>,   \
                              PreNormDecoderLayer<T, Norm<T>, Feed<T>>>;
BLASFORMER_EACH_BLOCK(BLASFORMER_TRANSFORMERS)

}  // namespace blasformer
