#include "models/seq2seq.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/require.h"
#include "layers/projected_cross_entropy.h"
#include "layers/residual.h"
#include "models/layer_stack.h"

namespace blasformer {

namespace {

TransformerLayerSizes layer_sizes(const Seq2SeqSizes& sizes) {
  TransformerLayerSizes layer;
  layer.d_model = sizes.d_model;
  layer.num_heads = layer.num_kv_heads = sizes.num_heads;
  layer.dim_feedforward = sizes.dim_feedforward;
  layer.activation = sizes.activation;
  layer.dropout_p = sizes.dropout_p;
  layer.layer_norm_eps = sizes.layer_norm_eps;
  layer.recompute = sizes.recompute;
  return layer;
}

template <class Encoding>
Encoding encoding_of(const Seq2SeqSizes& sizes, double scale) {
  if constexpr (requires(Encoding encoding) { encoding.layout; }) {
    return Encoding(sizes.d_model, SinusoidLayout::interleaved, scale, sizes.dropout_p);
  } else {
    return Encoding(sizes.max_length, sizes.d_model, scale, sizes.dropout_p);
  }
}

template <class Encoding>
void require_room(const Encoding& encoding, const char* name, Index length) {
  if constexpr (requires { encoding.embedding; }) {
    require(length <= encoding.embedding.num_embeddings(), name,
            " must have at most max_length = ", encoding.embedding.num_embeddings(), " columns, got ",
            length);
  }
}

DecoderArguments decoder_arguments(const TokenSequences& source, const TokenSequences& target) {
  DecoderArguments arguments;
  arguments.self_attn = attention_among(target.lengths, {}, Causal::yes);
  arguments.multihead_attn.query_lengths = argument(target.lengths);
  arguments.multihead_attn.key_lengths = argument(source.lengths);
  return arguments;
}

}  // namespace

template <class Encoding, class EncoderLayer, class DecoderLayer>
Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::Seq2Seq(const Seq2SeqSizes& sizes)
    : target_embedding((require(sizes.target_vocab_size > 0, "target_vocab_size must be positive, got ",
                                sizes.target_vocab_size),
                        require(sizes.source_vocab_size > 0 || sizes.source_features > 0,
                                "source_vocab_size must be positive, got ", sizes.source_vocab_size),
                        require(sizes.source_features >= 0, "source_features must be positive, got ",
                                sizes.source_features),
                        require(sizes.max_length > 0, "max_length must be positive, got ", sizes.max_length),
                        require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model),
                        require(sizes.num_encoder_layers > 0, "num_encoder_layers must be positive, got ",
                                sizes.num_encoder_layers),
                        require(sizes.num_decoder_layers > 0, "num_decoder_layers must be positive, got ",
                                sizes.num_decoder_layers),
                        require(!sizes.shared || sizes.source_vocab_size == sizes.target_vocab_size,
                                "source_vocab_size must be target_vocab_size = ", sizes.target_vocab_size,
                                " where the embedding is shared, got ", sizes.source_vocab_size),
                        sizes.target_vocab_size),
                       sizes.d_model),
      source_positions(encoding_of<Encoding>(
          sizes, sizes.source_features > 0 ? 1 : std::sqrt(static_cast<double>(sizes.d_model)))),
      target_positions(encoding_of<Encoding>(sizes, std::sqrt(static_cast<double>(sizes.d_model)))),
      encoder(EncoderLayer(layer_sizes(sizes)), sizes.num_encoder_layers,
              norm_of<typename EncoderLayer::LastNorm>(layer_sizes(sizes))),
      decoder(DecoderLayer(layer_sizes(sizes)), sizes.num_decoder_layers,
              norm_of<typename DecoderLayer::LastNorm>(layer_sizes(sizes))) {
  if (sizes.source_features > 0) {
    source_projection.emplace(sizes.source_features, sizes.d_model);
  } else if (!sizes.shared) {
    source_embedding.emplace(sizes.source_vocab_size, sizes.d_model);
  }
  if (!sizes.tied) output.emplace(sizes.d_model, sizes.target_vocab_size);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
void Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::initialise(Initialiser& random) {
  const double deviation = 1 / std::sqrt(static_cast<double>(d_model()));
  if (source_embedding) random.normal(source_embedding->weight, deviation);
  if (source_projection) source_projection->initialise(random);
  random.normal(target_embedding.weight, deviation);
  source_positions.initialise(random);
  target_positions.initialise(random);
  encoder.initialise(random);
  decoder.initialise(random);
  const auto xavier_uniform = [&random](const std::string&, Tensor<T>& parameter) {
    if (parameter.rank() < 2) return;
    random.uniform(parameter, std::sqrt(6 / static_cast<double>(parameter.extent(0) + parameter.extent(1))));
  };
  encoder.each_parameter(encoder, xavier_uniform);
  decoder.each_parameter(decoder, xavier_uniform);
  if (output) output->initialise(random);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::encoded(const SourceSequences<T>& source,
                                                            std::optional<std::uint64_t> seed, Saved* saved,
                                                            Index first_saved,
                                                            std::map<Index, AskedWeights<T>>* asked) const
    -> Tensor<T> {
  require_room(source_positions, "source_ids", source.ids.extent(1));
  const Tensor<T> read = source_projection
                             ? source_projection->forward(source.vectors, nullptr, std::nullopt,
                                                          saved ? Pass::training : Pass::inference)
                             : source_tokens().forward(source.ids);
  const Tensor<T> x = source_positions.forward(read, consecutive_positions(source.ids.extent(1)), seed,
                                               saved ? &saved->source_positions : nullptr);
  const Tensor<T> y =
      forward_layers(encoder.layers, x, attention_among(source.lengths, {}, Causal::no),
                     dropout_seed(seed, 2), saved ? &saved->encoder.layers : nullptr, first_saved, asked);
  return encoder.norm->forward(y, saved ? &saved->encoder.norm : nullptr);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::hidden_states(const SourceSequences<T>& source,
                                                                  const TokenSequences& target,
                                                                  std::optional<std::uint64_t> seed,
                                                                  Saved* saved, const Depth& depth,
                                                                  Asked* asked) const -> Tensor<T> {
  require_room(target_positions, "target_ids with the first token", target.ids.extent(1));
  if (saved) {
    saved->source = source;
    saved->target = target;
    saved->decoder.layers.resize(decoder.layers.size());
  }
  const bool saves_encoder = saved && depth.encoder <= static_cast<Index>(encoder.layers.size());
  const Tensor<T> memory = encoded(source, seed, saves_encoder ? saved : nullptr, depth.encoder,
                                   asked ? &asked->encoder : nullptr);

  Tensor<T> x = target_positions.forward(target_embedding.forward(target.ids),
                                         consecutive_positions(target.ids.extent(1)), dropout_seed(seed, 1),
                                         saved ? &saved->target_positions : nullptr);
  DecoderArguments arguments = decoder_arguments(source, target);
  const std::uint64_t first_place = 2 + encoder.layers.size() * EncoderLayer::kDropoutPlaces;
  for (std::size_t i = 0; i < decoder.layers.size(); ++i) {
    const auto index = static_cast<Index>(i);
    arguments.self_attn.seed = dropout_seed(seed, first_place + i * DecoderLayer::kDropoutPlaces);
    const bool asked_here = asked && asked->decoder.contains(index);
    x = decoder.layers[i].forward(x, memory, arguments,
                                  saved && index >= depth.decoder ? &saved->decoder.layers[i] : nullptr,
                                  asked_here ? &asked->decoder.at(index) : nullptr);
  }
  return decoder.norm->forward(x, saved ? &saved->decoder.norm : nullptr);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::forward(const SourceSequences<T>& source,
                                                            const TokenSequences& target,
                                                            std::optional<std::uint64_t> seed, Saved* saved,
                                                            Asked* asked) const -> Tensor<T> {
  const Tensor<T> hidden = hidden_states(source, target, seed, saved, {-1, -1}, asked);
  Tensor<T> logits({hidden.extent(0), hidden.extent(1), target_vocab_size()});
  projection().apply(hidden.data(), hidden.size() / d_model(), logits.data());
  if (saved) saved->hidden = hidden;
  return logits;
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::projection() const -> ClassProjection<T> {
  const std::uint16_t* const held = output ? output->packed.bfloat16().data() : nullptr;
  return {output_weight().data(), held, output_bias(), d_model(), target_vocab_size()};
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::depth() const -> Depth {
  const auto of_stack = [](const auto& stack, bool below) {
    if (below) return Index{-1};
    const Index lowest = lowest_trained(stack.layers);
    const bool inside = lowest < static_cast<Index>(stack.layers.size()) || wants_gradients(*stack.norm);
    return inside ? lowest : lowest + 1;
  };
  const bool reads =
      source_projection ? wants_gradients(*source_projection) : !source_tokens().weight.empty();
  Depth result{of_stack(encoder, reads || wants_gradients(source_positions)),
               of_stack(decoder, !target_embedding.weight.empty() || wants_gradients(target_positions))};
  if (result.encoder <= static_cast<Index>(encoder.layers.size()))
    result.decoder = std::min<Index>(result.decoder, 0);
  return result;
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
void Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::backward_below(const Saved& saved,
                                                                   const Tensor<T>& d_hidden,
                                                                   const Depth& depth, Seq2Seq& gradients,
                                                                   Write write) const {
  const auto encoder_layers = static_cast<Index>(encoder.layers.size());
  if (depth.decoder > static_cast<Index>(decoder.layers.size())) return;
  Tensor<T> d_x = decoder.norm->backward(saved.decoder.norm, d_hidden, *gradients.decoder.norm, write);
  Tensor<T> d_memory;
  for (std::size_t i = decoder.layers.size(); static_cast<Index>(i) > std::max<Index>(depth.decoder, 0);) {
    --i;
    const DecoderInputGradients<T> d_inputs =
        decoder.layers[i].backward(saved.decoder.layers[i], d_x, gradients.decoder.layers[i], write);
    d_x = d_inputs.target;
    if (d_memory.empty()) {
      d_memory = d_inputs.memory;
    } else {
      add_to(d_inputs.memory, d_memory);
    }
  }
  if (depth.decoder < 0) {
    d_x = target_positions.backward(saved.target_positions, d_x, gradients.target_positions, write);
    // A tied output has written its share already.
    target_embedding.backward({saved.target.ids}, d_x, gradients.target_embedding,
                              output ? write : Write::add);
  }
  if (depth.encoder > encoder_layers) return;
  d_x = encoder.norm->backward(saved.encoder.norm, d_memory, *gradients.encoder.norm, write);
  d_x = backward_layers(encoder.layers, saved.encoder.layers, d_x, gradients.encoder.layers,
                        std::max<Index>(depth.encoder, 0), write);
  if (depth.encoder >= 0) return;
  d_x = source_positions.backward(saved.source_positions, d_x, gradients.source_positions, write);
  if (source_projection) {
    source_projection->parameter_gradients(saved.source.vectors, std::nullopt, d_x,
                                           *gradients.source_projection, write);
  } else {
    source_tokens().backward({saved.source.ids}, d_x, gradients.source_tokens(),
                             source_embedding ? write : Write::add);
  }
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
void Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::backward(const Saved& saved, const Tensor<T>& d_logits,
                                                             Seq2Seq& gradients, Write write) const {
  const Index rows = saved.hidden.size() / d_model();
  linear_weight_gradient(saved.hidden.data(), d_logits.data(), target_vocab_size(), rows, d_model(),
                         target_vocab_size(), gradients.output_weight().data(), gradients.output_bias(),
                         write);
  const Depth depth = gradients.depth();
  if (depth.decoder > static_cast<Index>(decoder.layers.size())) return;
  Tensor<T> d_hidden(saved.hidden.shape());
  linear_input_gradient(d_logits.data(), target_vocab_size(), rows, target_vocab_size(),
                        output_weight().data(), d_model(), d_hidden.data(), Write::replace);
  backward_below(saved, d_hidden, depth, gradients, write);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
double Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::loss(const SourceSequences<T>& source,
                                                           const TokenSequences& target,
                                                           const Tensor<std::int64_t>& targets,
                                                           const CrossEntropyOptions<T>& options,
                                                           double divisor, std::optional<std::uint64_t> seed,
                                                           Seq2Seq* gradients, Write write) const {
  target_weight(targets.data(), targets.size(), target_vocab_size(), options);
  Depth depth{};
  if (gradients) depth = gradients->depth();
  const bool goes_below = gradients && depth.decoder <= static_cast<Index>(decoder.layers.size());
  Saved saved;
  const Tensor<T> hidden = hidden_states(source, target, seed, goes_below ? &saved : nullptr, depth, nullptr);
  ProjectedGradients<T> d_output;
  Tensor<T> d_hidden;
  if (goes_below) d_hidden = Tensor<T>(hidden.shape());
  if (gradients)
    d_output = {d_hidden.data(), gradients->output_weight().data(), gradients->output_bias(), write};
  const double total = projected_cross_entropy(hidden.data(), hidden.size() / d_model(), projection(),
                                               targets.data(), options, divisor, d_output);
  if (goes_below) backward_below(saved, d_hidden, depth, *gradients, write);
  return total;
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::encode(const SourceSequences<T>& source,
                                                           Index capacity) const -> DecoderCache<T> {
  return decoder_cache(std::span(decoder.layers), encoded(source, std::nullopt, nullptr, 0, nullptr),
                       source.lengths, capacity);
}

template <class Encoding, class EncoderLayer, class DecoderLayer>
auto Seq2Seq<Encoding, EncoderLayer, DecoderLayer>::add_tokens(const Tensor<std::int64_t>& ids,
                                                               DecoderCache<T>& cache) const -> Tensor<T> {
  const Index targets = ids.size();
  const bool room = std::all_of(cache.seen.data(), cache.seen.data() + targets,
                                [&](std::int64_t seen) { return seen < cache.capacity; });
  require(room, "targets must have room for another token");
  const Tensor<std::int64_t> one_each(ids.memory(), {targets, 1}), places(cache.seen.memory(), {targets, 1});
  const Tensor<T> x = target_positions.forward(target_embedding.forward(one_each), places);
  const auto added = Tensor<std::int64_t>::full({targets}, 1);
  const Tensor<T> hidden = decoder.norm->forward(decode_causally(std::span(decoder.layers), x, added, cache));
  Tensor<T> logits({targets, target_vocab_size()});
  projection().apply(hidden.data(), targets, logits.data());
  return logits;
}

#define BLASFORMER_SEQ2SEQ(T)                                                                       \
  template struct Seq2Seq<SinusoidalEncoding<T>, PostNormEncoderLayer<T>, PostNormDecoderLayer<T>>; \
  template struct Seq2Seq<SinusoidalEncoding<T>, PreNormEncoderLayer<T>, PreNormDecoderLayer<T>>;   \
  template struct Seq2Seq<LearnedEncoding<T>, PostNormEncoderLayer<T>, PostNormDecoderLayer<T>>;    \
  template struct Seq2Seq<LearnedEncoding<T>, PreNormEncoderLayer<T>, PreNormDecoderLayer<T>>;
BLASFORMER_SEQ2SEQ(float)
BLASFORMER_SEQ2SEQ(double)

}  // namespace blasformer
