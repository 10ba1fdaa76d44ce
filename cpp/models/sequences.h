#pragma once

#include <cstdint>

#include "core/array_view.h"
#include "core/tensor.h"
#include "layers/attention.h"

namespace blasformer {

// Sequences as models take them. What is empty was not given.
struct TokenSequences {
  Tensor<std::int64_t> ids;        // (batch, length)
  Tensor<std::int64_t> positions;  // (batch, length) or (length,)
  Tensor<std::int64_t> lengths;    // (batch,): how many ids of each are tokens; the others are 0
  Tensor<std::int64_t> segments;   // (batch, length): tokens see those of their own segment only
};

// A tensor as an argument of attention, which borrows it.
inline std::optional<ArrayView> argument(const Tensor<std::int64_t>& tensor) {
  if (tensor.empty()) return std::nullopt;
  ArrayView view;
  view.data = tensor.data();
  view.dtype = DType::int64;
  view.rank = static_cast<int>(tensor.rank());
  Index stride = 1;
  for (int axis = view.rank; axis-- > 0;) {
    view.shape[axis] = tensor.extent(axis);
    view.stride[axis] = stride;
    stride *= tensor.extent(axis);
  }
  return view;
}

// Tokens attend to tokens, those of their own segment if there are segments.
inline AttentionArguments attention_among(const Tensor<std::int64_t>& lengths,
                                          const Tensor<std::int64_t>& segments, Causal causal) {
  AttentionArguments arguments;
  arguments.causal = causal;
  arguments.query_lengths = arguments.key_lengths = argument(lengths);
  arguments.query_segments = argument(segments);
  return arguments;
}

}  // namespace blasformer
