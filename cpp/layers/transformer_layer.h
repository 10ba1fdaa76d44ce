#pragma once

// What encoder and decoder layers have in common: their sizes, and how their parts are made from them. A
// layer is a template over the types of its norms and of its feed-forward network.

#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "core/require.h"
#include "layers/activations.h"
#include "layers/multihead_attention.h"

namespace blasformer {

struct TransformerLayerSizes {
  Index d_model, num_heads, num_kv_heads, dim_feedforward;
  Activation activation = Activation::relu;
  double dropout_p = 0, layer_norm_eps = 1e-5;
  bool with_bias = true;   // of the linear and of the norm layers
  bool recompute = false;  // whether backward computes again, from the inputs alone, what it needs
  std::optional<RotaryPositions> rotary = std::nullopt;  // of self-attention
};

// Throws std::invalid_argument in the words of the layer, before its parts would in theirs.
const TransformerLayerSizes& checked(const TransformerLayerSizes& sizes);

template <class T>
MultiheadAttention<T> attention_of(const TransformerLayerSizes& sizes,
                                   const std::optional<RotaryPositions>& rotary) {
  return {sizes.d_model, sizes.num_heads, sizes.num_kv_heads, sizes.d_model,
          sizes.d_model, sizes.dropout_p, sizes.with_bias,    rotary};
}

template <class Norm>
Norm norm_of(const TransformerLayerSizes& sizes) {
  if constexpr (std::is_constructible_v<Norm, Shape, double, bool, bool>) {
    return Norm({sizes.d_model}, sizes.layer_norm_eps, true, sizes.with_bias);
  } else {
    return Norm({sizes.d_model}, sizes.layer_norm_eps);
  }
}

using Renaming = std::initializer_list<std::pair<const char*, const char*>>;

// The text of an error, which begins with the name of an argument, with the name that users know it by.
std::string renamed(const std::string& text, Renaming names);

// compute(), whose errors are about arguments that have other names here: pairs of theirs and ours.
template <class Compute>
auto renaming_errors(Renaming names, const Compute& compute) {
  try {
    return compute();
  } catch (const TypeMismatch& error) {
    throw TypeMismatch(renamed(error.what(), names));
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(renamed(error.what(), names));
  }
}

// What is instantiated for every kind of layer: macro(T, Norm, Feed).
#define BLASFORMER_EACH_BLOCK(macro)                                                       \
  macro(float, LayerNorm, FeedForward) macro(float, LayerNorm, GatedFeedForward)           \
      macro(float, RMSNorm, FeedForward) macro(float, RMSNorm, GatedFeedForward)           \
          macro(double, LayerNorm, FeedForward) macro(double, LayerNorm, GatedFeedForward) \
              macro(double, RMSNorm, FeedForward) macro(double, RMSNorm, GatedFeedForward)

}  // namespace blasformer
