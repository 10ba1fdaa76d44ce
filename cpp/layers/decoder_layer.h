#pragma once

#include <cstdint>
#include <optional>

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

// Who may attend to whom within the target, and from the target to the memory. The seed of a pass is that of
// self_attn.
struct DecoderArguments {
  AttentionArguments self_attn, multihead_attn;
};

// The weights of both attentions of a layer, where somebody asked for them.
template <class T>
struct AskedDecoderWeights {
  AskedWeights<T> self_attn, multihead_attn;
};

template <class T>
struct DecoderInputGradients {
  Tensor<T> target, memory;

  template <class Visit>
  void each_tensor(Visit&& visit) const {
    visit(target);
    visit(memory);
  }
};

// What the two kinds of decoder layer are built from: self-attention and attention to a memory, such as the
// output of an encoder, and a feed-forward network. Parameters are named and ordered as PyTorch does.
template <class T, class Norm, class Feed>
struct DecoderSublayers {
  using Scalar = T;
  using LastNorm = Norm;  // at the end of a stack of such layers
  MultiheadAttention<T> self_attn, multihead_attn;
  Feed feed_forward;
  Norm norm1, norm2, norm3;
  double dropout_p;  // of what joins the residual stream
  bool recompute;    // whether backward computes again, from the inputs alone, what it needs

  // With recompute only what is from `target` on.
  struct Saved {
    typename MultiheadAttention<T>::Saved self_attn, multihead_attn;
    typename Feed::Saved feed_forward;
    typename Norm::Saved norm1, norm2, norm3;
    // Of the pass: self-attention uses it, the other five places those that follow.
    std::optional<std::uint64_t> seed;
    Tensor<T> target, memory;  // with recompute
    DecoderArguments arguments;

    template <class Visit>
    void each_tensor(Visit&& visit) const {
      self_attn.each_tensor(visit);
      multihead_attn.each_tensor(visit);
      feed_forward.each_tensor(visit);
      norm1.each_tensor(visit);
      norm2.each_tensor(visit);
      norm3.each_tensor(visit);
      visit(target);
      visit(memory);
    }
  };
  static constexpr std::uint64_t kDropoutPlaces = 6;

  explicit DecoderSublayers(const TransformerLayerSizes& sizes);

  Index d_model() const { return self_attn.embed_dim(); }
  void initialise(Initialiser& random);

  template <class Self, class Visit>
  static void each_parameter(Self& self, Visit&& visit) {
    each_parameter_of("self_attn", self.self_attn, visit);
    each_parameter_of("multihead_attn", self.multihead_attn, visit);
    Feed::each_parameter(self.feed_forward, visit);
    each_parameter_of("norm1", self.norm1, visit);
    each_parameter_of("norm2", self.norm2, visit);
    each_parameter_of("norm3", self.norm3, visit);
  }
  template <class Self, class Visit>
  static void each_linear(Self& self, Visit&& visit) {
    each_linear_of("self_attn", self.self_attn, visit);
    each_linear_of("multihead_attn", self.multihead_attn, visit);
    Feed::each_linear(self.feed_forward, visit);
  }

 protected:
  // multihead_attn of x and the memory.
  Tensor<T> look_up(const Tensor<T>& x, const Tensor<T>& memory, const DecoderArguments& arguments,
                    Saved* saved, AskedDecoderWeights<T>* asked) const;
};

// x = norm1(target + self_attn(target)), norm2(x + multihead_attn(x, memory)), norm3(x + feed_forward(x))
// (Vaswani et al. 2017). target and memory are (batch, .., d_model) or (.., d_model).
template <class T, class Norm = LayerNorm<T>, class Feed = FeedForward<T>>
struct PostNormDecoderLayer : DecoderSublayers<T, Norm, Feed> {
  using typename DecoderSublayers<T, Norm, Feed>::Saved;
  using DecoderSublayers<T, Norm, Feed>::DecoderSublayers;
  Tensor<T> forward(const Tensor<T>& target, const Tensor<T>& memory, const DecoderArguments& arguments = {},
                    Saved* saved = nullptr, AskedDecoderWeights<T>* asked = nullptr,
                    Tensor<T>* out = nullptr) const;
  DecoderInputGradients<T> backward(const Saved& saved, const Tensor<T>& d_y, PostNormDecoderLayer& gradients,
                                    Write write) const;
};

// x = target + self_attn(norm1(target)), x + multihead_attn(norm2(x), memory), x + feed_forward(norm3(x))
// (Xiong et al. 2020).
template <class T, class Norm = LayerNorm<T>, class Feed = FeedForward<T>>
struct PreNormDecoderLayer : DecoderSublayers<T, Norm, Feed> {
  using typename DecoderSublayers<T, Norm, Feed>::Saved;
  using DecoderSublayers<T, Norm, Feed>::DecoderSublayers;
  Tensor<T> forward(const Tensor<T>& target, const Tensor<T>& memory, const DecoderArguments& arguments = {},
                    Saved* saved = nullptr, AskedDecoderWeights<T>* asked = nullptr,
                    Tensor<T>* out = nullptr) const;
  DecoderInputGradients<T> backward(const Saved& saved, const Tensor<T>& d_y, PreNormDecoderLayer& gradients,
                                    Write write) const;
};

}  // namespace blasformer
