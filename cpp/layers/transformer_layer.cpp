#include "layers/transformer_layer.h"

#include <cmath>

namespace blasformer {

const TransformerLayerSizes& checked(const TransformerLayerSizes& sizes) {
  require(sizes.d_model > 0, "d_model must be positive, got ", sizes.d_model);
  require(sizes.num_heads > 0, "nhead must be positive, got ", sizes.num_heads);
  require(sizes.d_model % sizes.num_heads == 0, "d_model must be a multiple of nhead = ", sizes.num_heads,
          ", got ", sizes.d_model);
  require(sizes.dim_feedforward > 0, "dim_feedforward must be positive, got ", sizes.dim_feedforward);
  require(std::isfinite(sizes.layer_norm_eps) && sizes.layer_norm_eps >= 0,
          "layer_norm_eps must be finite and at least 0, got ", sizes.layer_norm_eps);
  return sizes;
}

std::string renamed(const std::string& text, Renaming names) {
  const std::size_t end = text.find(' ');
  for (const auto& [theirs, ours] : names) {
    if (text.compare(0, end, theirs) == 0) return ours + text.substr(end);
  }
  return text;
}

}  // namespace blasformer
