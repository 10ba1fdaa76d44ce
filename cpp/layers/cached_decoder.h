#pragma once

// Decoder layers for targets that grow by a few positions at a time: keys and values of the memories, which
// are computed once, and of earlier positions are kept, so that a step costs what its own positions cost.

#include <cstdint>
#include <span>
#include <vector>

#include "core/tensor.h"
#include "layers/cached_attention.h"

namespace blasformer {

// What is kept. Targets lie in the order of their memories, as many for each.
template <class T>
struct DecoderCache {
  std::vector<KeysAndValues<T>> self_attn;       // of the targets, for each layer
  std::vector<KeysAndValues<T>> multihead_attn;  // of the memories
  Tensor<std::int64_t> memory_lengths;           // (memories,), or empty
  Tensor<std::int64_t> seen;                     // (targets,): the positions so far
  Index capacity;

  Index memories() const { return multihead_attn.front().key.extent(0); }
  // Goes on with these memories, and these targets of theirs.
  DecoderCache of_rows(const std::vector<Index>& memories, const std::vector<Index>& targets) const;
  // Goes on with these targets and their memories.
  DecoderCache of_targets(const std::vector<Index>& targets) const;
};

// An empty target for each memory (batch, memory_length, d_model), with room for `capacity` positions.
// lengths (batch,), or empty: how much of each memory is there.
template <class Layer, class T = typename Layer::Scalar>
DecoderCache<T> decoder_cache(std::span<const Layer> layers, const Tensor<T>& memory,
                              const Tensor<std::int64_t>& lengths, Index capacity);

// What the layers, in turn, make of x (targets, length, d_model), of which row b holds added[b] new positions
// of target b. The cache has room for them, and has them afterwards.
template <class Layer, class T = typename Layer::Scalar>
Tensor<T> decode_causally(std::span<const Layer> layers, Tensor<T> x, const Tensor<std::int64_t>& added,
                          DecoderCache<T>& cache);

}  // namespace blasformer
