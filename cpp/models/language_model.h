#pragma once

// A decoder-only language model: GPT-2 (Radford et al. 2019), with its parameters named as GPT-2's are.
//
//   x = dropout(wte[ids] + wpe[positions])
//   x = block(x) for each pre-norm block h.i, in which a token attends to itself and to those before it
//   logits = ln_f(x) wte^T, or lm_head of ln_f(x)

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "layers/activations.h"
#include "layers/cached_attention.h"
#include "layers/cross_entropy.h"
#include "layers/embedding.h"
#include "layers/encoder_layer.h"
#include "layers/initialiser.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/low_rank.h"
#include "layers/multihead_attention.h"
#include "layers/parameters.h"
#include "layers/positional_encoding.h"
#include "layers/projected_cross_entropy.h"
#include "layers/write.h"
#include "models/sequences.h"

namespace blasformer {

struct LanguageModelSizes {
  Index vocab_size, max_length, d_model, num_heads, num_layers, dim_feedforward;
  Activation activation = Activation::gelu_tanh;
  double dropout_p = 0, layer_norm_eps = 1e-5;
  bool tied = true;  // whether the output has the weights of the input's embedding
  bool recompute = false;
};

template <class T>
struct LanguageModel {
  using Scalar = T;
  using Block = PreNormEncoderLayer<T>;
  Embedding<T> wte;        // of tokens, (vocab_size, d_model)
  LearnedEncoding<T> wpe;  // of positions, (max_length, d_model)
  std::vector<Block> h;
  LayerNorm<T> ln_f;
  std::optional<Linear<T>> lm_head;  // where the output is not tied

  struct Saved {
    TokenSequences sequences;  // what the arguments of attention point into
    typename LearnedEncoding<T>::Saved wpe;
    std::vector<typename Block::Saved> h;
    typename LayerNorm<T>::Saved ln_f;
    Tensor<T> hidden;  // what the logits are linear in

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(sequences.ids);
      for (const auto& block : h) block.each_tensor(visit);
      ln_f.each_tensor(visit);
      visit(hidden);
    }
  };

  explicit LanguageModel(const LanguageModelSizes& sizes);  // parameters are not initialised

  Index vocab_size() const { return wte.num_embeddings(); }
  Index max_length() const { return wpe.embedding.num_embeddings(); }
  Index d_model() const { return wte.embedding_dim(); }

  // Matrices normal with deviation 0.02, those that write to the residual stream with 0.02 / sqrt(2 blocks);
  // biases 0, weights of norms 1 (Radford et al. 2019).
  void initialise(Initialiser& random);

  // The logits of the next token, (batch, length, vocab_size). asked: the attention weights to return, by the
  // index of their block.
  Tensor<T> forward(const TokenSequences& sequences, std::optional<std::uint64_t> seed = std::nullopt,
                    Saved* saved = nullptr, std::map<Index, AskedWeights<T>>* asked = nullptr) const;
  void backward(const Saved& saved, const Tensor<T>& d_logits, LanguageModel& gradients, Write write) const;

  // The sum of the losses of `targets`, (batch, length), and the gradients of that sum / divisor, unless
  // `gradients` is null. Nothing is kept for blocks below which nothing is trained.
  double loss(const TokenSequences& sequences, const Tensor<std::int64_t>& targets,
              const CrossEntropyOptions<T>& options, double divisor, std::optional<std::uint64_t> seed,
              LanguageModel* gradients, Write write) const;

  // What is kept of sequences to which tokens are added.
  struct Cache {
    std::vector<KeysAndValues<T>> h;
    Tensor<std::int64_t> seen;  // (batch,): the tokens so far
    Index capacity;

    Cache of_rows(const std::vector<Index>& rows) const;  // see KeysAndValues
  };
  // Room for `capacity` tokens of each of so many sequences.
  Cache new_cache(Index batch, Index capacity) const;
  // Adds the first added[b] ids of row b of `ids`, (batch, length), to sequence b. Returns the logits of the
  // token after the last of each, (batch, vocab_size).
  Tensor<T> add_tokens(const Tensor<std::int64_t>& ids, const Tensor<std::int64_t>& added,
                       Cache& cache) const;

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("wte", self.wte, visit);
    each_parameter_of("wpe", self.wpe, visit);
    for (std::size_t i = 0; i < self.h.size(); ++i) {
      auto& block = self.h[i];
      const std::string name = "h." + std::to_string(i);
      each_parameter_of(name + ".ln_1", block.norm1, visit);
      visit(name + ".attn.c_attn.weight", block.self_attn.in_proj_weight);
      visit(name + ".attn.c_attn.bias", block.self_attn.in_proj_bias);
      if (block.self_attn.in_proj_adapter)
        each_parameter_of(name + ".attn.c_attn", *block.self_attn.in_proj_adapter, visit);
      each_parameter_of(name + ".attn.c_proj", block.self_attn.out_proj, visit);
      each_parameter_of(name + ".ln_2", block.norm2, visit);
      each_parameter_of(name + ".mlp.c_fc", block.feed_forward.linear1, visit);
      each_parameter_of(name + ".mlp.c_proj", block.feed_forward.linear2, visit);
    }
    each_parameter_of("ln_f", self.ln_f, visit);
    if (self.lm_head) each_parameter_of("lm_head", *self.lm_head, visit);
  }
  // The linear layers of the blocks; the projections of query, key and value are one, as in GPT-2.
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < self.h.size(); ++i) {
      auto& block = self.h[i];
      const std::string name = "h." + std::to_string(i);
      const Tensor<T>& c_attn = block.self_attn.in_proj_weight;
      visit(name + ".attn.c_attn", AdaptedWeight<T>{c_attn, 0, c_attn.extent(0)},
            block.self_attn.in_proj_adapter);
      each_linear_of(name + ".attn.c_proj", block.self_attn.out_proj, visit);
      each_linear_of(name + ".mlp.c_fc", block.feed_forward.linear1, visit);
      each_linear_of(name + ".mlp.c_proj", block.feed_forward.linear2, visit);
    }
  }

 private:
  const Tensor<T>& output_weight() const { return lm_head ? lm_head->weight : wte.weight; }
  Tensor<T>& output_weight() { return lm_head ? lm_head->weight : wte.weight; }
  // What the logits are linear in. `saved`, if given, is filled for blocks from first_saved on.
  Tensor<T> hidden_states(const TokenSequences& sequences, std::optional<std::uint64_t> seed, Saved* saved,
                          Index first_saved, std::map<Index, AskedWeights<T>>* asked) const;
  // Of everything below the output.
  void backward_below(const Saved& saved, const Tensor<T>& d_hidden, LanguageModel& gradients,
                      Write write) const;
  // The lowest block that backward must go through: -1 for the embeddings, h.size() for ln_f, one more if
  // nothing below the output is trained.
  Index lowest_trained() const;  // of a value for gradients
};

}  // namespace blasformer
