#pragma once

// BERT, the encoder (Devlin et al. 2018), with its parameters named as published checkpoints name them:
//
//   x = LayerNorm(word embedding + position embedding + token type embedding)
//   x = layer(x) for each post-norm encoder layer
//   pooled = tanh(dense(x of the first token))
//
// Sequences are packed: their tokens follow one another without padding, so that nothing is computed for
// padding and no sequence sees another.

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/embedding.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/parameters.h"
#include "models/projections.h"

namespace blasformer {

struct BertSizes {
  Index vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size;
  Index max_position_embeddings, type_vocab_size;
  Activation activation = Activation::gelu;
  double layer_norm_eps = 1e-12;
  bool with_pooler = true;
  double hidden_dropout_p = 0, attention_dropout_p = 0;
};

// Tokens of several sequences, one after the other; all three (total,).
struct PackedTokens {
  Tensor<std::int64_t> ids, positions, types;
  std::vector<Index> starts;  // sequence i is tokens [starts[i], starts[i + 1])
};

template <class T>
struct BertModel {
  using Scalar = T;
  Embedding<T> word_embeddings, position_embeddings, token_type_embeddings;
  LayerNorm<T> embedding_norm;
  std::vector<PostNormEncoderLayer<T>> layers;
  std::optional<Linear<T>> pooler;
  double dropout_p;  // of the embeddings; the layers have theirs

  struct Saved {
    PackedTokens tokens;
    typename LayerNorm<T>::Saved embedding_norm;
    std::vector<typename PostNormEncoderLayer<T>::Saved> layers;
    typename Linear<T>::Saved pooler;
    Tensor<T> pooled;  // empty where it was not asked for
    std::optional<std::uint64_t> seed;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(tokens.ids);
      visit(tokens.positions);
      visit(tokens.types);
      embedding_norm.each_tensor(visit);
      for (const auto& layer : layers) layer.each_tensor(visit);
      pooler.each_tensor(visit);
      visit(pooled);
    }
  };

  explicit BertModel(const BertSizes& sizes);  // parameters are not initialised

  Index hidden_size() const { return word_embeddings.embedding_dim(); }
  // Matrices normal with deviation 0.02, biases 0, weights of norms 1 (Devlin et al. 2018).
  void initialise(Initialiser& random);

  // The attention weights of one layer that somebody asked for: of each sequence that has tokens,
  // (heads, length, length), or (length, length) for the mean over these heads.
  struct Asked {
    std::vector<Index> heads;
    bool mean = false;
    std::vector<Tensor<T>> weights;
  };
  // The last hidden states, (total, hidden_size). asked, if given, is by the index of the layer. Without a
  // seed nothing is dropped.
  Tensor<T> forward(const PackedTokens& tokens, std::map<Index, Asked>* asked = nullptr,
                    std::optional<std::uint64_t> seed = std::nullopt, Saved* saved = nullptr) const;
  // tanh(dense(first row of each sequence)): (sequences, hidden_size); zeros for a sequence without tokens.
  Tensor<T> pool(const Tensor<T>& hidden, const std::vector<Index>& starts, Saved* saved = nullptr) const;
  // The gradients of the parameters, given those of the last hidden states and, unless it is empty, of what
  // pool returned. Layers below the lowest one that learns are not gone through.
  void backward(const Saved& saved, Tensor<T> d_hidden, const Tensor<T>& d_pooled, BertModel& gradients,
                Write write) const;
  void backward(const Saved& saved, const Tensor<T>& d_hidden, BertModel& gradients, Write write) const {
    backward(saved, d_hidden, {}, gradients, write);
  }
  // The number of seeds that one pass uses.
  std::uint64_t dropout_places() const { return layers.size() * PostNormEncoderLayer<T>::kDropoutPlaces + 1; }

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("embeddings.word_embeddings", self.word_embeddings, visit);
    each_parameter_of("embeddings.position_embeddings", self.position_embeddings, visit);
    each_parameter_of("embeddings.token_type_embeddings", self.token_type_embeddings, visit);
    each_parameter_of("embeddings.LayerNorm", self.embedding_norm, visit);
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
      auto& layer = self.layers[i];
      const std::string name = "encoder.layer." + std::to_string(i);
      each_projection_parameter(name + ".attention.self.", kProjectionNames, layer.self_attn, visit);
      each_parameter_of(name + ".attention.output.dense", layer.self_attn.out_proj, visit);
      each_parameter_of(name + ".attention.output.LayerNorm", layer.norm1, visit);
      each_parameter_of(name + ".intermediate.dense", layer.feed_forward.linear1, visit);
      each_parameter_of(name + ".output.dense", layer.feed_forward.linear2, visit);
      each_parameter_of(name + ".output.LayerNorm", layer.norm2, visit);
    }
    if (self.pooler) each_parameter_of("pooler.dense", *self.pooler, visit);
  }

  template <class Self, class Visit>
  static void each_storage(Self& self, Visit&& visit) {
    const auto visit_named = [&](const std::string&, auto& tensor) { visit(tensor); };
    Embedding<T>::each_parameter(self.word_embeddings, visit_named);
    Embedding<T>::each_parameter(self.position_embeddings, visit_named);
    Embedding<T>::each_parameter(self.token_type_embeddings, visit_named);
    LayerNorm<T>::each_parameter(self.embedding_norm, visit_named);
    for (auto& layer : self.layers) PostNormEncoderLayer<T>::each_parameter(layer, visit_named);
    if (self.pooler) Linear<T>::each_parameter(*self.pooler, visit_named);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
      auto& layer = self.layers[i];
      const std::string name = "encoder.layer." + std::to_string(i);
      const auto visit_projection = [&](const std::string& part, const auto& weight, auto& adapter) {
        visit(name + ".attention.self." + part, weight, adapter);
      };
      MultiheadAttention<T>::each_projection(layer.self_attn, kProjectionNames, visit_projection);
      each_linear_of(name + ".attention.output.dense", layer.self_attn.out_proj, visit);
      each_linear_of(name + ".intermediate.dense", layer.feed_forward.linear1, visit);
      each_linear_of(name + ".output.dense", layer.feed_forward.linear2, visit);
    }
    if (self.pooler) each_linear_of("pooler.dense", *self.pooler, visit);
  }

 private:
  static constexpr std::array<const char*, 3> kProjectionNames = {"query", "key", "value"};

  // Recomputes the weights from the layer's input, so that who does not ask for them pays nothing.
  static void weigh(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                    const std::vector<Index>& starts, Asked& asked);
  Tensor<T> embed(const PackedTokens& tokens, std::optional<std::uint64_t> seed, Saved* saved) const;
};

}  // namespace blasformer
