#pragma once

// BERT, the encoder (Devlin et al. 2018), with its parameters named as published checkpoints name them:
//
//   x = LayerNorm(word embedding + position embedding + token type embedding)
//   x = layer(x) for each post-norm encoder layer
//   pooled = tanh(dense(x of the first token))
//
// Sequences are packed: their tokens follow one another without padding, so that nothing is computed for
// padding and no sequence sees another.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/embedding.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/parameters.h"

namespace blasformer {

struct BertSizes {
  Index vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size;
  Index max_position_embeddings, type_vocab_size;
  Activation activation = Activation::gelu;
  double layer_norm_eps = 1e-12;
  bool with_pooler = true;
};

// Tokens of several sequences, one after the other; all three (total,).
struct PackedTokens {
  Tensor<std::int64_t> ids, positions, types;
  std::vector<Index> starts;  // sequence i is tokens [starts[i], starts[i + 1])
};

// A tensor of that shape on the memory of another, beginning with one of its rows.
template <class T>
Tensor<T> shared_rows(const Tensor<T>& tensor, Index first_row, Shape shape) {
  T* const first = tensor.memory().get() + first_row * (tensor.size() / tensor.extent(0));
  return Tensor<T>(std::shared_ptr<T[]>(tensor.memory(), first), std::move(shape));
}

template <class T>
struct BertModel {
  using Scalar = T;
  Embedding<T> word_embeddings, position_embeddings, token_type_embeddings;
  LayerNorm<T> embedding_norm;
  std::vector<PostNormEncoderLayer<T>> layers;
  std::optional<Linear<T>> pooler;

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
  // The last hidden states, (total, hidden_size). asked, if given, is by the index of the layer.
  Tensor<T> forward(const PackedTokens& tokens, std::map<Index, Asked>* asked = nullptr) const;
  // tanh(dense(first row of each sequence)): (sequences, hidden_size); zeros for a sequence without tokens.
  Tensor<T> pool(const Tensor<T>& hidden, const std::vector<Index>& starts) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("embeddings.word_embeddings", self.word_embeddings, visit);
    each_parameter_of("embeddings.position_embeddings", self.position_embeddings, visit);
    each_parameter_of("embeddings.token_type_embeddings", self.token_type_embeddings, visit);
    each_parameter_of("embeddings.LayerNorm", self.embedding_norm, visit);
    for (std::size_t i = 0; i < self.layers.size(); ++i) {
      auto& layer = self.layers[i];
      const std::string name = "encoder.layer." + std::to_string(i);
      each_projection(name + ".attention.self", layer.self_attn, visit);
      each_parameter_of(name + ".attention.output.dense", layer.self_attn.out_proj, visit);
      each_parameter_of(name + ".attention.output.LayerNorm", layer.norm1, visit);
      each_parameter_of(name + ".intermediate.dense", layer.feed_forward.linear1, visit);
      each_parameter_of(name + ".output.dense", layer.feed_forward.linear2, visit);
      each_parameter_of(name + ".output.LayerNorm", layer.norm2, visit);
    }
    if (self.pooler) each_parameter_of("pooler.dense", *self.pooler, visit);
  }

 private:
  // Checkpoints hold the three projections apart; here they are rows of one matrix, so that one product
  // computes them.
  template <class Attention, class Visit>
  static void each_projection(const std::string& name, Attention& attention, Visit&& visit) {
    const Index width = attention.embed_dim();
    const char* const parts[] = {".query", ".key", ".value"};
    for (Index i = 0; i < 3; ++i) {
      Tensor<T> weight = shared_rows(attention.in_proj_weight, i * width, {width, width});
      Tensor<T> bias = shared_rows(attention.in_proj_bias, i * width, {width});
      visit(name + parts[i] + ".weight", weight);
      visit(name + parts[i] + ".bias", bias);
    }
  }
  // Recomputes the weights from the layer's input, so that who does not ask for them pays nothing.
  static void weigh(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                    const std::vector<Index>& starts, Asked& asked);
  Tensor<T> embed(const PackedTokens& tokens) const;
};

}  // namespace blasformer
