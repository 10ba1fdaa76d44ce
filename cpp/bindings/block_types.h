#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <type_traits>

#include "bindings/arrays.h"
#include "core/require.h"
#include "layers/feed_forward.h"
#include "layers/gated_feed_forward.h"
#include "layers/layer_norm.h"
#include "layers/rms_norm.h"
#include "layers/rotary.h"

namespace blasformer::bindings {

// (interleaved, base, dims), or None; dims may be None, for all features of a head.
inline std::optional<RotaryPositions> rotary_of(const py::object& argument, Index embed_dim,
                                                Index num_heads) {
  if (argument.is_none()) return std::nullopt;
  const auto parts = argument.cast<py::tuple>();
  const Index head_dim = num_heads > 0 ? embed_dim / num_heads : 0;
  return RotaryPositions{parts[0].cast<bool>() ? RotaryPairs::interleaved : RotaryPairs::halves,
                         parts[1].cast<double>(), parts[2].is_none() ? head_dim : parts[2].cast<Index>()};
}

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
