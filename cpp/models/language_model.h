#pragma once

// A decoder-only language model, of the family of GPT-2 or of Llama, with its parameters named as published.
//
//   x = tokens[ids], in GPT-2 dropout(tokens[ids] + places[positions])
//   x = block(x) for each pre-norm block, in which a token attends to itself and to those before it
//   logits = last_norm(x) tokens^T, or lm_head of last_norm(x)

#include <array>
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
#include "layers/gated_feed_forward.h"
#include "layers/initialiser.h"
#include "layers/layer_norm.h"
#include "layers/linear.h"
#include "layers/low_rank.h"
#include "layers/multihead_attention.h"
#include "layers/parameters.h"
#include "layers/positional_encoding.h"
#include "layers/projected_cross_entropy.h"
#include "layers/rms_norm.h"
#include "layers/write.h"
#include "models/projections.h"
#include "models/sequences.h"

namespace blasformer {

struct LanguageModelSizes {
  Index vocab_size, max_length, d_model, num_heads, num_layers, dim_feedforward;
  Activation activation = Activation::gelu_tanh;
  double layer_norm_eps = 1e-5;
  double embedding_dropout_p = 0, attention_dropout_p = 0;
  double dropout_p = 0;  // of what joins the residual stream
  bool tied = true;      // whether the output has the weights of the input's embedding
  bool recompute = false;
  // Of Llama only.
  Index num_kv_heads = 0;
  double rotary_base = 10000;
  bool projection_bias = false;  // of query, key and value
};

// GPT-2 (Radford et al. 2019): learned positions, LayerNorm; query, key and value are one projection.
template <class T>
struct Gpt2 {
  using Norm = LayerNorm<T>;
  using Block = PreNormEncoderLayer<T>;
  static constexpr const char *kTokens = "wte", *kBlocks = "h.", *kLastNorm = "ln_f";
  static constexpr bool kLearnedPositions = true, kProjectionsApart = false;

  static Block block(const LanguageModelSizes& sizes);

  template <class Self, class Visit>
  static void each_parameter(const std::string& name, Self& block, Visit&& visit) {
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
  template <class Self, class Visit>
  static void each_linear(const std::string& name, Self& block, Visit&& visit) {
    const Tensor<T>& c_attn = block.self_attn.in_proj_weight;
    visit(name + ".attn.c_attn", AdaptedWeight<T>{c_attn, 0, c_attn.extent(0), &block.self_attn.packed[0]},
          block.self_attn.in_proj_adapter);
    each_linear_of(name + ".attn.c_proj", block.self_attn.out_proj, visit);
    each_linear_of(name + ".mlp.c_fc", block.feed_forward.linear1, visit);
    each_linear_of(name + ".mlp.c_proj", block.feed_forward.linear2, visit);
  }
};

// Llama (Touvron et al. 2023): rotary positions, RMSNorm, SwiGLU, heads that share keys and values; no
// biases.
template <class T>
struct Llama {
  using Norm = RMSNorm<T>;
  using Block = PreNormEncoderLayer<T, RMSNorm<T>, GatedFeedForward<T>>;
  static constexpr const char *kTokens = "embed_tokens", *kBlocks = "layers.", *kLastNorm = "norm";
  static constexpr bool kLearnedPositions = false, kProjectionsApart = true;
  static constexpr std::array<const char*, 3> kProjectionNames = {"q_proj", "k_proj", "v_proj"};

  static Block block(const LanguageModelSizes& sizes);

  template <class Self, class Visit>
  static void each_parameter(const std::string& name, Self& block, Visit&& visit) {
    each_projection_parameter(name + ".self_attn.", kProjectionNames, block.self_attn, visit);
    each_parameter_of(name + ".self_attn.o_proj", block.self_attn.out_proj, visit);
    GatedFeedForward<T>::each_parameter(block.feed_forward, [&](const std::string& part, auto& parameter) {
      visit(name + ".mlp." + part, parameter);
    });
    each_parameter_of(name + ".input_layernorm", block.norm1, visit);
    each_parameter_of(name + ".post_attention_layernorm", block.norm2, visit);
  }
  template <class Self, class Visit>
  static void each_linear(const std::string& name, Self& block, Visit&& visit) {
    MultiheadAttention<T>::each_projection(block.self_attn, kProjectionNames,
                                           [&](const std::string& part, const auto& weight, auto& adapter) {
                                             visit(name + ".self_attn." + part, weight, adapter);
                                           });
    each_linear_of(name + ".self_attn.o_proj", block.self_attn.out_proj, visit);
    each_linear_of(name + ".mlp", block.feed_forward, visit);
  }
};

template <class T, template <class> class FamilyOf = Gpt2>
struct LanguageModel {
  using Scalar = T;
  using Family = FamilyOf<T>;
  using Block = typename Family::Block;
  Embedding<T> tokens;                       // (vocab_size, d_model)
  std::optional<LearnedEncoding<T>> places;  // of positions, (max_length, d_model)
  std::vector<Block> blocks;
  typename Family::Norm last_norm;
  std::optional<Linear<T>> lm_head;  // where the output is not tied
  Index longest;                     // sequence

  struct Saved {
    TokenSequences sequences;  // what the arguments of attention point into
    typename LearnedEncoding<T>::Saved places;
    std::vector<typename Block::Saved> blocks;
    typename Family::Norm::Saved last_norm;
    Tensor<T> hidden;  // what the logits are linear in

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      visit(sequences.ids);
      for (const auto& block : blocks) block.each_tensor(visit);
      last_norm.each_tensor(visit);
      visit(hidden);
    }
  };

  explicit LanguageModel(const LanguageModelSizes& sizes);  // parameters are not initialised

  Index vocab_size() const { return tokens.num_embeddings(); }
  Index d_model() const { return tokens.embedding_dim(); }

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
    std::vector<KeysAndValues<T>> blocks;
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
    each_parameter_of(Family::kTokens, self.tokens, visit);
    if (self.places) each_parameter_of("wpe", *self.places, visit);
    for (std::size_t i = 0; i < self.blocks.size(); ++i)
      Family::each_parameter(Family::kBlocks + std::to_string(i), self.blocks[i], visit);
    each_parameter_of(Family::kLastNorm, self.last_norm, visit);
    if (self.lm_head) each_parameter_of("lm_head", *self.lm_head, visit);
  }
  template <class Self, class Visit>
  static void each_storage(Self& self, Visit&& visit)
    requires Family::kProjectionsApart
  {
    blasformer::each_storage(self.tokens, visit);
    for (auto& block : self.blocks) blasformer::each_storage(block, visit);
    blasformer::each_storage(self.last_norm, visit);
    if (self.lm_head) blasformer::each_storage(*self.lm_head, visit);
  }
  // The linear layers of the blocks.
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    for (std::size_t i = 0; i < self.blocks.size(); ++i)
      Family::each_linear(Family::kBlocks + std::to_string(i), self.blocks[i], visit);
  }
  // The one that takes no adapter.
  template <class Self, class Visit>
  static void each_output(Self& self, Visit&& visit) {
    if (self.lm_head) each_linear_of("lm_head", *self.lm_head, visit);
  }

 private:
  const Tensor<T>& output_weight() const { return lm_head ? lm_head->weight : tokens.weight; }
  ClassProjection<T> projection() const;  // to the vocabulary
  Tensor<T>& output_weight() { return lm_head ? lm_head->weight : tokens.weight; }
  // What the logits are linear in. `saved`, if given, is filled for blocks from first_saved on.
  Tensor<T> hidden_states(const TokenSequences& sequences, std::optional<std::uint64_t> seed, Saved* saved,
                          Index first_saved, std::map<Index, AskedWeights<T>>* asked) const;
  // Of everything below the output.
  void backward_below(const Saved& saved, const Tensor<T>& d_hidden, LanguageModel& gradients,
                      Write write) const;
  // The lowest block that backward must go through: -1 for the embeddings, blocks.size() for last_norm,
  // one more if nothing below the output is trained.
  Index lowest_trained() const;  // of a value for gradients
};

}  // namespace blasformer
