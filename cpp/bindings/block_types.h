#pragma once

#include <string>
#include <type_traits>

#include "core/require.h"
#include "layers/feed_forward.h"
#include "layers/gated_feed_forward.h"
#include "layers/layer_norm.h"
#include "layers/rms_norm.h"

namespace blasformer::bindings {

// make(std::type_identity<Norm>, std::type_identity<Feed>) for the types that Transformer layers are built
// from.
template <class T, class Make>
auto with_block_types(const std::string& norm, bool gated, const Make& make) {
  const auto with_norm = [&]<class Norm>(std::type_identity<Norm> of_norm) {
    if (gated) return make(of_norm, std::type_identity<GatedFeedForward<T>>());
    return make(of_norm, std::type_identity<FeedForward<T>>());
  };
  if (norm == "rms") return with_norm(std::type_identity<RMSNorm<T>>());
  if (norm != "layer") fail("norm must be layer or rms, got ", norm);
  return with_norm(std::type_identity<LayerNorm<T>>());
}

}  // namespace blasformer::bindings
