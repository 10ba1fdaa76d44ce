#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/tensor.h"
#include "layers/attention.h"
#include "layers/feed_forward.h"
#include "layers/initialiser.h"
#include "layers/layer_norm.h"
#include "layers/multihead_attention.h"
#include "layers/parameters.h"
#include "layers/transformer_layer.h"
#include "layers/write.h"

namespace blasformer {

// What the two kinds of encoder layer are built from. Parameters are named and ordered as PyTorch does.
template <class T, class Norm, class Feed>
struct EncoderSublayers {
  using Scalar = T;
  using LastNorm = Norm;  // at the end of a stack of such layers
  MultiheadAttention<T> self_attn;
  Feed feed_forward;
  Norm norm1, norm2;
  double dropout_p;  // of what joins the residual stream
  bool recompute;    // whether backward computes again, from the input alone, what it needs

  // With recompute only what is from `input` on.
  struct Saved {
    typename MultiheadAttention<T>::Saved self_attn;
    typename Feed::Saved feed_forward;
    typename Norm::Saved norm1, norm2;
    std::optional<std::uint64_t>
        seed;         // of the pass: attention uses it, the three other places those that follow
    Tensor<T> input;  // with recompute
    AttentionArguments arguments;
    std::vector<Index> starts;  // of packed sequences

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      self_attn.each_tensor(visit);
      feed_forward.each_tensor(visit);
      norm1.each_tensor(visit);
      norm2.each_tensor(visit);
      visit(input);
    }
  };
  static constexpr std::uint64_t kDropoutPlaces = 4;

  explicit EncoderSublayers(const TransformerLayerSizes& sizes);

  Index d_model() const { return self_attn.embed_dim(); }
  void initialise(Initialiser& random);

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("self_attn", self.self_attn, visit);
    Feed::each_parameter(self.feed_forward, visit);
    each_parameter_of("norm1", self.norm1, visit);
    each_parameter_of("norm2", self.norm2, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("self_attn", self.self_attn, visit);
    Feed::each_linear(self.feed_forward, visit);
  }
};

// x = norm1(x + self_attn(x)), then norm2(x + feed_forward(x)) (Vaswani et al. 2017; BERT).
// x is (batch, length, d_model) or (length, d_model); `arguments` as for MultiheadAttention.
template <class T, class Norm = LayerNorm<T>, class Feed = FeedForward<T>>
struct PostNormEncoderLayer : EncoderSublayers<T, Norm, Feed> {
  using typename EncoderSublayers<T, Norm, Feed>::Saved;
  using EncoderSublayers<T, Norm, Feed>::EncoderSublayers;
  Tensor<T> forward(const Tensor<T>& x, const AttentionArguments& arguments = {}, Saved* saved = nullptr,
                    AskedWeights<T>* asked = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, PostNormEncoderLayer& gradients,
                     Write write) const;
  // Sequences without padding, as in MultiheadAttention::forward_packed.
  Tensor<T> forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                           const AttentionArguments& arguments = {}, Saved* saved = nullptr) const;

 private:
  Tensor<T> join(const Tensor<T>& x, Tensor<T> attended, std::optional<std::uint64_t> seed, Saved* saved,
                 Tensor<T>* out) const;
};

// x = x + self_attn(norm1(x)), then x + feed_forward(norm2(x)) (Xiong et al. 2020; GPT-2, ViT).
template <class T, class Norm = LayerNorm<T>, class Feed = FeedForward<T>>
struct PreNormEncoderLayer : EncoderSublayers<T, Norm, Feed> {
  using typename EncoderSublayers<T, Norm, Feed>::Saved;
  using EncoderSublayers<T, Norm, Feed>::EncoderSublayers;
  Tensor<T> forward(const Tensor<T>& x, const AttentionArguments& arguments = {}, Saved* saved = nullptr,
                    AskedWeights<T>* asked = nullptr, Tensor<T>* out = nullptr) const;
  Tensor<T> backward(const Saved& saved, const Tensor<T>& d_y, PreNormEncoderLayer& gradients,
                     Write write) const;
  Tensor<T> forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                           const AttentionArguments& arguments = {}, Saved* saved = nullptr) const;

 private:
  Tensor<T> join(const Tensor<T>& x, Tensor<T> attended, std::optional<std::uint64_t> seed, Saved* saved,
                 Tensor<T>* out) const;
};

}  // namespace blasformer
