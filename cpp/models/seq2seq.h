#pragma once

// An encoder-decoder model that turns one sequence of tokens into another (Vaswani et al. 2017), or a
// sequence of vectors into one of tokens:
//
//   memory = encoder(dropout(sqrt(d_model) source_embedding[source] + positions)), or of
//            dropout(source_projection(source) + positions)
//   x = decoder(dropout(sqrt(d_model) target_embedding[target] + positions), memory), causal
//   logits = x target_embedding^T, or output(x)

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/cached_decoder.h"
#include "layers/cross_entropy.h"
#include "layers/decoder.h"
#include "layers/decoder_layer.h"
#include "layers/embedding.h"
#include "layers/encoder.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/linear.h"
#include "layers/low_rank.h"
#include "layers/parameters.h"
#include "layers/positional_encoding.h"
#include "layers/projected_cross_entropy.h"
#include "layers/write.h"
#include "models/sequences.h"

namespace blasformer {

struct Seq2SeqSizes {
  Index source_vocab_size = 0, source_features = 0;  // one of them: of sources of ids, or of vectors
  Index target_vocab_size, max_length, d_model, num_heads;
  Index num_encoder_layers, num_decoder_layers, dim_feedforward;
  Activation activation = Activation::relu;
  double dropout_p = 0, layer_norm_eps = 1e-5;
  bool shared = false;  // whether source and target have one embedding
  bool tied = true;     // whether the output has the weights of the target's embedding
  bool recompute = false;
};

// Sources of ids; or of vectors, where ids are all 0.
template <class T>
struct SourceSequences : TokenSequences {
  Tensor<T> vectors;  // (batch, length, source_features), zeros beyond the lengths; or empty
};

// Encoding is a SinusoidalEncoding or a LearnedEncoding; the two layers are both pre-norm, or both post-norm.
template <class Encoding, class EncoderLayer, class DecoderLayer>
struct Seq2Seq {
  using Scalar = typename EncoderLayer::Scalar;
  using T = Scalar;
  std::optional<Embedding<T>> source_embedding;  // without it and source_projection: target_embedding
  std::optional<Linear<T>> source_projection;    // of vectors
  Embedding<T> target_embedding;
  Encoding source_positions, target_positions;
  TransformerEncoder<EncoderLayer> encoder;
  TransformerDecoder<DecoderLayer> decoder;
  std::optional<Linear<T>> output;  // where it is not tied

  struct Saved {
    SourceSequences<T> source;  // what the arguments of attention point into, as into target
    TokenSequences target;
    typename Encoding::Saved source_positions, target_positions;
    typename TransformerEncoder<EncoderLayer>::Saved encoder;
    typename TransformerDecoder<DecoderLayer>::Saved decoder;
    Tensor<T> hidden;  // what the logits are linear in

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(source.ids);
      visit(source.vectors);
      visit(target.ids);
      encoder.each_tensor(visit);
      decoder.each_tensor(visit);
      visit(hidden);
    }
  };
  // Attention weights to return, by the index of their layer.
  struct Asked {
    std::map<Index, AskedWeights<T>> encoder;
    std::map<Index, AskedDecoderWeights<T>> decoder;
  };

  explicit Seq2Seq(const Seq2SeqSizes& sizes);  // parameters are not initialised

  Index d_model() const { return target_embedding.embedding_dim(); }
  Index source_features() const { return source_projection ? source_projection->in_features() : 0; }
  Index target_vocab_size() const { return target_embedding.num_embeddings(); }

  // Embeddings normal with variance 1 / d_model, matrices of the layers as Glorot and Bengio 2010, the rest
  // as the layers do.
  void initialise(Initialiser& random);

  // The logits of the target token after each that the decoder reads, (batch, length, target_vocab_size).
  Tensor<T> forward(const SourceSequences<T>& source, const TokenSequences& target,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr,
                    Asked* asked = nullptr) const;
  void backward(const Saved& saved, const Tensor<T>& d_logits, Seq2Seq& gradients, Write write) const;

  // The sum of the losses of `targets`, (batch, length) as target.ids, and the gradients of that sum /
  // divisor, unless `gradients` is null. Nothing is kept for layers below which nothing is trained.
  double loss(const SourceSequences<T>& source, const TokenSequences& target,
              const Tensor<std::int64_t>& targets, const CrossEntropyOptions<T>& options, double divisor,
              std::optional<std::uint64_t> seed, Seq2Seq* gradients, Write write) const;

  // One empty target for each source, with room for `capacity` tokens.
  DecoderCache<T> encode(const SourceSequences<T>& source, Index capacity) const;
  // Adds a token to each target, (targets,). Returns the logits of the next, (targets, target_vocab_size).
  Tensor<T> add_tokens(const Tensor<std::int64_t>& ids, DecoderCache<T>& cache) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    if (self.source_embedding) each_parameter_of("source_embedding", *self.source_embedding, visit);
    if (self.source_projection) each_parameter_of("source_projection", *self.source_projection, visit);
    each_parameter_of("target_embedding", self.target_embedding, visit);
    each_parameter_of("source_positions", self.source_positions, visit);
    each_parameter_of("target_positions", self.target_positions, visit);
    each_parameter_of("transformer.encoder", self.encoder, visit);
    each_parameter_of("transformer.decoder", self.decoder, visit);
    if (self.output) each_parameter_of("output", *self.output, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("transformer.encoder", self.encoder, visit);
    each_linear_of("transformer.decoder", self.decoder, visit);
  }
  // The one that takes no adapter.
  template <class Self, class Visit>
  static void each_output(Self& self, Visit&& visit) {
    if (self.output) each_linear_of("output", *self.output, visit);
  }

 private:
  // How far down backward must go, of a value for gradients. In the encoder: -1 for its embedding, a layer,
  // their number for the norm, and one more if nothing is trained. The decoder likewise, but at most its
  // lowest layer if something is trained in the encoder, whose memory all layers look up.
  struct Depth {
    Index encoder, decoder;
  };
  Depth depth() const;

  const Embedding<T>& source_tokens() const {
    return source_embedding ? *source_embedding : target_embedding;
  }
  Embedding<T>& source_tokens() { return source_embedding ? *source_embedding : target_embedding; }
  const Tensor<T>& output_weight() const { return output ? output->weight : target_embedding.weight; }
  Tensor<T>& output_weight() { return output ? output->weight : target_embedding.weight; }
  ClassProjection<T> projection() const;  // to the vocabulary
  const T* output_bias() const { return output ? output->bias.data() : nullptr; }
  T* output_bias() { return output ? output->bias.data() : nullptr; }

  Tensor<T> encoded(const SourceSequences<T>& source, std::optional<std::uint64_t> seed, Saved* saved,
                    Index first_saved, std::map<Index, AskedWeights<T>>* asked) const;
  // What the logits are linear in. `saved`, if given, is filled as far down as `depth` says.
  Tensor<T> hidden_states(const SourceSequences<T>& source, const TokenSequences& target,
                          std::optional<std::uint64_t> seed, Saved* saved, const Depth& depth,
                          Asked* asked) const;
  // Of everything below the output.
  void backward_below(const Saved& saved, const Tensor<T>& d_hidden, const Depth& depth, Seq2Seq& gradients,
                      Write write) const;
};

}  // namespace blasformer
