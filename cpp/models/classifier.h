#pragma once

// An encoder with a head that tells classes apart: of sequences of ids, or of vectors such as the patches of
// an image (Dosovitskiy et al. 2021).
//
//   x = dropout(embedding(input) + position_embedding), behind class_token if there is one
//   x = encoder(x)
//   logits = head(mean of x over the sequence, or x of the class token)

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/cross_entropy.h"
#include "layers/embedding.h"
#include "layers/encoder.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/linear.h"
#include "layers/low_rank.h"
#include "layers/parameters.h"
#include "layers/positional_encoding.h"
#include "layers/write.h"

namespace blasformer {

enum class Pooling { mean, first };

struct ClassifierSizes {
  Index inputs;  // the size of the vocabulary, or the features of a vector
  Index num_classes, max_length, d_model, num_heads, num_layers, dim_feedforward;
  Activation activation = Activation::gelu;
  double dropout_p = 0, layer_norm_eps = 1e-5;
  Pooling pooling = Pooling::mean;
  bool recompute = false;
};

// Which positions of each sequence are there; what is empty was not given.
struct PresentPositions {
  Tensor<std::int64_t> lengths;  // (batch,)
  Tensor<bool> mask;             // (batch, length)

  bool contains(Index sequence, Index position, Index length) const {
    return (lengths.empty() || position < lengths.data()[sequence]) &&
           (mask.empty() || mask.data()[sequence * length + position]);
  }
};

// Embed is an Embedding, of ids (batch, length), or a Linear, of vectors (batch, length, features); those
// that are not there are zeros.
template <class Embed, class Layer>
struct Classifier {
  using Scalar = typename Layer::Scalar;
  using T = Scalar;
  static constexpr bool kReadsIds = std::is_same_v<Embed, Embedding<T>>;
  using Input = std::conditional_t<kReadsIds, Tensor<std::int64_t>, Tensor<T>>;
  Embed embedding;
  LearnedEncoding<T> position_embedding;
  Tensor<T> class_token;  // (d_model,), or empty if the mean is pooled
  TransformerEncoder<Layer> encoder;
  Linear<T> head;

  struct Saved {
    typename Embed::Saved embedding;
    typename LearnedEncoding<T>::Saved position_embedding;
    PresentPositions present;  // in what the encoder gets; arguments of attention point into it
    typename TransformerEncoder<Layer>::Saved encoder;
    typename Linear<T>::Saved head;
    Shape encoded_shape;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      embedding.each_tensor(visit);
      encoder.each_tensor(visit);
      head.each_tensor(visit);
    }
  };

  explicit Classifier(const ClassifierSizes& sizes);  // parameters are not initialised

  Index d_model() const { return position_embedding.embedding.embedding_dim(); }
  Index max_length() const { return position_embedding.embedding.num_embeddings(); }
  Index num_classes() const { return head.out_features(); }

  // Embeddings and the class token normal with deviation 0.02, a Linear embedding, encoder and head as those
  // layers are.
  void initialise(Initialiser& random);

  // (batch, num_classes). asked: the attention weights to return, by the index of their layer.
  Tensor<T> forward(const Input& input, const PresentPositions& present,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr,
                    std::map<Index, AskedWeights<T>>* asked = nullptr) const {
    return forward_saving(input, present, seed, saved, kInput, asked);
  }
  // The gradient of vectors; empty for ids.
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_logits, Classifier& gradients,
                     Write write) const {
    return backward_to(kReadsIds ? gradients.lowest_trained() : kInput, saved, d_logits, gradients, write);
  }

  // The sum of the losses of `targets`, (batch,), and the gradients of that sum / divisor, unless `gradients`
  // is null. Nothing is kept for layers below which nothing is trained.
  double loss(const Input& input, const PresentPositions& present, const Tensor<std::int64_t>& targets,
              const CrossEntropyOptions<T>& options, double divisor, std::optional<std::uint64_t> seed,
              Classifier* gradients, Write write) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("embedding", self.embedding, visit);
    each_parameter_of("position_embedding", self.position_embedding, visit);
    if (self.with_class_token()) visit("class_token", self.class_token);
    each_parameter_of("encoder", self.encoder, visit);
    each_parameter_of("head", self.head, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    if constexpr (!kReadsIds) each_linear_of("embedding", self.embedding, visit);
    each_linear_of("encoder", self.encoder, visit);
    each_linear_of("head", self.head, visit);
  }

 private:
  static constexpr Index kInput = -2, kEmbedding = -1;  // below the layers of the encoder

  bool with_class_token() const { return pooling == Pooling::first; }
  // How far down backward must go: kEmbedding, a layer of the encoder, their number for its norm, and one
  // more if only the head is trained.
  Index lowest_trained() const;  // of a value for gradients
  Tensor<T> forward_saving(const Input& input, const PresentPositions& present,
                           std::optional<std::uint64_t> seed, Saved* saved, Index lowest,
                           std::map<Index, AskedWeights<T>>* asked) const;
  Tensor<T> backward_to(Index lowest, const Saved& saved, const Tensor<T>& d_logits, Classifier& gradients,
                        Write write) const;
  Tensor<T> pool(const Tensor<T>& x, const PresentPositions& present) const;
  Tensor<T> pool_backward(const Shape& shape, const PresentPositions& present,
                          const Tensor<T>& d_pooled) const;

  Pooling pooling;
};

}  // namespace blasformer
