#pragma once

// Attention for those who add a few positions at a time: the keys and values of what came before are kept,
// turned by their positions where these are rotary.

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "layers/multihead_attention.h"

namespace blasformer {

// Keys and values of sequences, (batch, num_kv_heads, capacity, head_dim): those of a head lie together.
template <class T>
struct KeysAndValues {
  Tensor<T> key, value;

  KeysAndValues(const MultiheadAttention<T>& attention, Index batch, Index capacity);

  // Those of the sequences `rows`, in that order; a sequence may be named several times.
  KeysAndValues of_rows(const std::vector<Index>& rows) const;
};

// attention(x) for x (batch, length, embed_dim), of which row b holds added[b] new positions of sequence b,
// behind the seen[b] that `cache` holds. A new position attends to all before it and to itself. Keys and
// values of the new ones are added to the cache, which has room for them. added and seen are (batch,).
template <class T>
Tensor<T> attend_causally(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                          const Tensor<std::int64_t>& added, const Tensor<std::int64_t>& seen,
                          KeysAndValues<T>& cache);

// The keys and values of memory (batch, memory_length, kdim), for attend_to. Without rotary positions, which
// are for self-attention.
template <class T>
KeysAndValues<T> keys_and_values(const MultiheadAttention<T>& attention, const Tensor<T>& memory);

// attention(x, memory) for x (batch, length, embed_dim); lengths (batch,), or empty: how much of each memory
// is there.
template <class T>
Tensor<T> attend_to(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                    const KeysAndValues<T>& memory, const Tensor<std::int64_t>& lengths);

}  // namespace blasformer
